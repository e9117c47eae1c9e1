"""A model run over windows: the log-probability of each token, and which rows of each forward are which tokens.

The same token scored in a batch of another shape gets another log-probability in its last bits: matrix products round
as their shapes make them, and how many tokens an expert is given depends on all that share the forward. So by default
a window has a forward to itself. Then a document's scores are a function of the document, the model and the machine
alone, to the last bit, whatever else is scored.
"""

# Shapes: B windows of a forward, S inputs, D hidden, V vocabulary, C tokens of a chunk, N scored tokens.

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pathmoe.data.packing import IGNORE_INDEX
from pathmoe_eval.evaluation.windows import Window, group_windows

_LOGITS_PER_CHUNK = 1 << 25
_PADDING = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenScores:
    """Scored tokens, one entry each in every array."""

    document_N: NDArray[np.int64]
    """Number of the document, counted from 0."""
    position_N: NDArray[np.int64]
    """Position of the token in its document, at least 1: the first one has nothing to be predicted from."""
    token_id_N: NDArray[np.int64]
    log_probability_N: NDArray[np.float64]
    """Natural logarithm of the probability that the model gave the token, computed in float32 from its logits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredBatch:
    """One forward. Its rows, joined end to end, are the rows that routers and experts of the model saw: [B * S]."""

    input_ids_BS: NDArray[np.int64]
    token_mask_BS: NDArray[np.bool_]
    """False for padding, which lies at the end of rows; whether routed or not, it says nothing."""
    is_counted_BS: NDArray[np.bool_]
    """True where this forward is the one to count the token in: not padding, and no context that was counted before."""
    document_BS: NDArray[np.int64]
    """Number of each token's document, counted from 0; -1 for padding."""
    position_BS: NDArray[np.int64]
    """Position of each token in its document; -1 for padding."""
    predicted_ids_BS: NDArray[np.int64] | None
    """The likeliest next token after each token, on request; arbitrary after padding."""
    scores: TokenScores
    """Of the tokens that follow counted ones, by rows."""


def scored_batches(
    model: PreTrainedModel, windows: Iterable[Window], windows_per_forward: int = 1, predict: bool = False
) -> Iterator[ScoredBatch]:
    """Run a causal language model over windows, one forward for each batch that is taken from the iterator.

    Rows are padded on the right and no mask is passed: a causal model does not look there, and keeps its fastest
    attention. Logits are made from the hidden states by the model's own forward in chunks, so that those of a whole
    batch never exist together.

    Args:
        model: in evaluation mode; inputs go to its device.
        windows: of `score_windows`.
        windows_per_forward: with more than 1, log-probabilities depend in their last bits on which windows meet.
        predict: whether to keep the likeliest next tokens.

    Raises:
        ValueError: windows_per_forward below 1, or a log-probability that is not finite.
    """
    for group in group_windows(windows, windows_per_forward):
        yield _score(model, group, predict)


def join_scores(batches: Iterable[ScoredBatch]) -> TokenScores:
    """The scores of all batches, sorted by document and position."""
    scores = [batch.scores for batch in batches]
    names = ("document_N", "position_N", "token_id_N", "log_probability_N")
    joined = {
        name: np.concatenate([np.empty(0, dtype), *(getattr(of_batch, name) for of_batch in scores)])
        for name, dtype in zip(names, (np.int64, np.int64, np.int64, np.float64), strict=True)
    }
    order_N = np.lexsort((joined["position_N"], joined["document_N"]))
    return TokenScores(**{name: values_N[order_N] for name, values_N in joined.items()})


def _score(model: PreTrainedModel, group: list[Window], predict: bool) -> ScoredBatch:
    length = max(len(window.input_ids_S) for window in group)
    shape = (len(group), length)
    # Padding is a token of the window itself, so that it is one that the model knows.
    input_ids_BS = np.stack([_padded(window.input_ids_S, length, window.input_ids_S[0]) for window in group])
    target_ids_BS = np.stack([_padded(window.target_ids_S, length, IGNORE_INDEX) for window in group])
    document_BS, position_BS = np.full(shape, _PADDING), np.full(shape, _PADDING)
    is_counted_BS = np.zeros(shape, dtype=np.bool_)
    for row, window in enumerate(group):
        num_inputs = len(window.input_ids_S)
        document_BS[row, :num_inputs] = window.document
        position_BS[row, :num_inputs] = np.arange(window.begin, window.begin + num_inputs)
        is_counted_BS[row, window.num_repeated : num_inputs] = True
    log_probability_BS, predicted_ids_BS = _forward(model, input_ids_BS, target_ids_BS, predict)
    is_scored_BS = target_ids_BS != IGNORE_INDEX
    scores = TokenScores(
        document_N=document_BS[is_scored_BS],
        position_N=position_BS[is_scored_BS] + 1,
        token_id_N=target_ids_BS[is_scored_BS],
        log_probability_N=log_probability_BS[is_scored_BS],
    )
    _check_finite(scores)
    return ScoredBatch(
        input_ids_BS=input_ids_BS,
        token_mask_BS=document_BS != _PADDING,
        is_counted_BS=is_counted_BS,
        document_BS=document_BS,
        position_BS=position_BS,
        predicted_ids_BS=predicted_ids_BS,
        scores=scores,
    )


def _padded(values_S: NDArray[np.int64], length: int, value: int) -> NDArray[np.int64]:
    return np.pad(values_S, (0, length - len(values_S)), constant_values=value)


def _check_finite(scores: TokenScores) -> None:
    wrong = np.flatnonzero(~np.isfinite(scores.log_probability_N))
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"--model: the log-probability ({scores.log_probability_N[first]}) of token {scores.position_N[first]} of "
            f"document {scores.document_N[first]} must be finite; try --dtype float32, or another checkpoint"
        )


@torch.inference_mode()
def _forward(
    model: PreTrainedModel, input_ids_BS: NDArray[np.int64], target_ids_BS: NDArray[np.int64], predict: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    """Log-probabilities [B, S] of the targets (0 where there is none), and the likeliest next tokens [B, S]."""
    inputs = torch.from_numpy(input_ids_BS).to(model.device)
    targets = torch.from_numpy(target_ids_BS).to(model.device)
    losses, predictions = [], []
    for first, logits_BCV in _logits_in_chunks(model, inputs):
        targets_BC = targets[:, first : first + logits_BCV.shape[1]]
        loss = cross_entropy(
            logits_BCV.float().flatten(0, 1), targets_BC.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
        )
        losses.append(loss.view(targets_BC.shape))
        if predict:
            predictions.append(logits_BCV.argmax(dim=-1))
    log_probability_BS = -torch.cat(losses, dim=1).cpu().double().numpy()
    return log_probability_BS, torch.cat(predictions, dim=1).cpu().numpy() if predict else None


def _logits_in_chunks(model: PreTrainedModel, input_ids_BS: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First position and logits [B, C, V] of consecutive chunks of positions; the decoder itself runs once.

    The head's part is the model's own forward too, which may scale or cap its logits, given the decoder's output.
    """
    num_rows, length = input_ids_BS.shape
    per_position = num_rows * int(model.config.get_text_config().vocab_size)
    chunk = max(1, _LOGITS_PER_CHUNK // per_position)
    decoder: Any = model.base_model
    in_one_go = decoder is model or "logits_to_keep" not in inspect.signature(model.forward).parameters
    if in_one_go or chunk >= length:
        yield 0, model(input_ids=input_ids_BS, use_cache=False).logits
        return
    output = decoder(input_ids=input_ids_BS, use_cache=False)
    forward = decoder.forward
    had_its_own = "forward" in vars(decoder)
    decoder.forward = lambda *args, **kwargs: output
    try:
        for first in range(0, length, chunk):
            positions = torch.arange(first, min(first + chunk, length), device=input_ids_BS.device)
            yield first, model(input_ids=input_ids_BS, use_cache=False, logits_to_keep=positions).logits
    finally:
        if had_its_own:
            decoder.forward = forward
        else:
            del decoder.forward
