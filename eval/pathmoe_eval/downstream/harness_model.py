"""A model as lm-evaluation-harness asks it: log-likelihoods of texts that follow others, and completions."""

# Shapes: S inputs of a window, R requests.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray
from tqdm import tqdm

from pathmoe.data import encode
from pathmoe.data.packing import IGNORE_INDEX
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel
from pathmoe_eval.evaluation.scoring import ScoredBatch, scored_batches
from pathmoe_eval.evaluation.windows import Window

# Of completions whose task does not say, as the harness has it for the models of transformers.
_MAX_NEW_TOKENS = 256

Request = tuple[Any, list[int], list[int]]
"""What the harness knows a request by, the token ids of its context, and those of its continuation."""


class HarnessModel(TemplateLM):
    """An `EvaluatedModel` for `lm_eval.simple_evaluate`.

    Texts become tokens as the harness has it for models of transformers: spaces at the end of a context begin its
    continuation, both are encoded as one, and what exceeds `max_length` is cut off at the left. Models of this program
    get the bos token before each text, as in training, and text that spells a special token stays text. Where the first
    characters of a continuation became part of the context's last token, so that nothing would be left to score, the
    two are encoded apart.

    Attributes:
        num_requests: texts that were scored or completed so far.
        num_truncated: those of them whose beginning was cut off.
    """

    def __init__(self, model: EvaluatedModel, max_length: int, batch_size: int = 1) -> None:
        """A model, the inputs of a forward at most, and the texts that are scored by a forward at most.

        With a batch size above 1 log-likelihoods depend in their last bits on which texts meet. Completions are
        generated one by one.

        Raises:
            ValueError: a size below 1, or a tokenizer without a token to begin with.
        """
        super().__init__()
        for option, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"--{option} ({value}) must be at least 1; raise it")
        self.tokenizer: Any = model.tokenizer
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"--model ({model.name}) must have a tokenizer with a bos or an eos token, which stands before what is "
                "scored without a context; set one"
            )
        self.model = model
        self.max_length = max_length
        self.batch_size = batch_size
        self.num_requests = self.num_truncated = 0

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        token_id: int | None = self.tokenizer.eos_token_id
        return token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return int(eos if bos is None else bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; None adds what the model expects before it."""
        if not self.model.ends_documents:
            special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            return list(self.tokenizer.encode(string, **special))
        bos = self.tokenizer.bos_token_id
        begin = [] if bos is None or add_special_tokens is False else [bos]
        return [*begin, *encode(self.tokenizer, [string])[0]]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        context_ids, continuation_ids = super()._encode_pair(context, continuation)
        if continuation and not continuation_ids:
            context_ids = self.tok_encode(context)
            continuation_ids = self.tok_encode(continuation, add_special_tokens=False)
        # A context of nothing but spaces has become part of its continuation.
        return context_ids or [self.prefix_token_id], continuation_ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of continuations after contexts, each with whether it is what greedy decoding would give."""
        log_likelihoods: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return log_likelihoods

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows that share one token, the first of which begins with `prefix_token_id`."""
        pairs_of_text = [list(self._rolling_pairs(*request.args)) for request in requests]
        scored = self._loglikelihood_tokens([(None, *pair) for pair in chain.from_iterable(pairs_of_text)])
        values = iter(scored)
        return [sum(next(values)[0] for _ in pairs) for pairs in pairs_of_text]

    def _rolling_pairs(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        token_ids = self.tok_encode(text, add_special_tokens=False)
        return map(
            make_disjoint_window,
            get_rolling_token_windows(token_ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1),
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether each of its tokens is the likeliest; (0, True) of none."""
        windows = [self._window(number, *ids) for number, (_, *ids) in enumerate(requests) if ids[1]]
        log_likelihood_R, is_greedy_R = np.zeros(len(requests)), np.ones(len(requests), dtype=np.bool_)
        with tqdm(total=len(windows), desc="scoring", disable=None, leave=False) as bar:
            for batch in scored_batches(self.model.model, windows, self.batch_size, predict=True):
                _add_scores(batch, log_likelihood_R, is_greedy_R)
                bar.update(len(batch.document_BS))
        return list(zip(log_likelihood_R.tolist(), is_greedy_R.tolist(), strict=True))

    def _window(self, number: int, context_ids: list[int], continuation_ids: list[int]) -> Window:
        if len(continuation_ids) > self.max_length:
            raise ValueError(
                f"--max_length ({self.max_length}) must be at least the {len(continuation_ids)} tokens of "
                f"{self.tokenizer.decode(continuation_ids)[:40]!r}, which a task scores; raise it, or leave that out"
            )
        inputs = [*context_ids, *continuation_ids][:-1]
        self._count(len(inputs) > self.max_length)
        input_ids_S = np.array(inputs[-self.max_length :], dtype=np.int64)
        if (highest := max(*inputs, *continuation_ids)) >= self.model.vocab_size:
            raise ValueError(
                f"--model ({self.model.name}) has a tokenizer that gives the token id {highest}, which must be below "
                f"the model's vocabulary ({self.model.vocab_size}); put that beside it that it was trained with"
            )
        target_ids_S = np.full(len(input_ids_S), IGNORE_INDEX)
        target_ids_S[-len(continuation_ids) :] = continuation_ids
        return Window(number, 0, len(input_ids_S) - len(continuation_ids), input_ids_S, target_ids_S)

    def _count(self, is_truncated: bool) -> None:
        self.num_requests += 1
        self.num_truncated += is_truncated

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions of contexts, each up to what its task says that it ends with."""
        return [self._complete(*request.args) for request in tqdm(requests, "completing", disable=None, leave=False)]

    @torch.inference_mode()
    def _complete(self, context: str, task_options: Mapping[str, Any]) -> str:
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(task_options), _MAX_NEW_TOKENS))
        end = "" if self.eot_token_id is None else self.tokenizer.decode(self.eot_token_id)
        until = handle_stop_sequences(options.pop("until"), eos=end or None)
        max_new_tokens = options.pop("max_gen_toks")
        if not options["do_sample"]:
            options.pop("temperature", None)  # transformers warns of one that is without effect
        if max_new_tokens >= self.max_length:
            raise ValueError(
                f"--max_length ({self.max_length}) must be above the {max_new_tokens} tokens that a task may generate; "
                "raise it, or leave out tasks that generate"
            )
        token_ids = self.tok_encode(context) or [self.prefix_token_id]
        self._count(len(token_ids) + max_new_tokens > self.max_length)
        prompt = torch.tensor([token_ids[max_new_tokens - self.max_length :]], device=self.model.model.device)
        model: Any = self.model.model
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, until, prompt.shape[1], 1),
            pad_token_id=self.prefix_token_id,
            **options,
        )
        text = self.tokenizer.decode(generated[0, prompt.shape[1] :], skip_special_tokens=True)
        completion: str = postprocess_generated_text(text, until, None)
        return completion


def _add_scores(batch: ScoredBatch, log_likelihood_R: NDArray[np.float64], is_greedy_R: NDArray[np.bool_]) -> None:
    """Put what a forward says into the places of its requests."""
    assert batch.predicted_ids_BS is not None
    scores = batch.scores
    for row, request in enumerate(batch.document_BS[:, 0]):
        is_its = scores.document_N == request
        likeliest = batch.predicted_ids_BS[row, scores.position_N[is_its] - 1]
        log_likelihood_R[request] = scores.log_probability_N[is_its].sum()
        is_greedy_R[request] = (likeliest == scores.token_id_N[is_its]).all()
