"""Forwards of a model that go on from a cache, each token's routing recorded, and forwarded tokens counted."""

# Shapes: P tokens of a prefix, R rows of a batch, S tokens of a row, V vocabulary, L MoE layers, K experts per token.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Cache, PreTrainedModel

from pathmoe_eval.traces.recorder import RoutingRecorder


class Decoded(NamedTuple):
    """What a forward gives, with a cache that holds its tokens too."""

    log_probability_RV: NDArray[np.float64]
    """Of each next token, natural logarithm, after the last token of each row."""
    expert_ids: NDArray[np.unsignedinteger]
    """Routing of the tokens that were fed: [tokens of the prefix, L, K], or [rows, L, K]."""
    cache: Cache


class Decoder:
    """A model that goes on from where sequences are. Use inside of `with`, which records routing.

    Rows of one step are sequences of equal length. What shares a forward changes the last bits of logits, so that a
    near tie may fall otherwise in batches of another size; nothing else does.

    Attributes:
        num_forwarded: tokens that were fed so far.
        num_steps: forwards so far.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the model's MoE layers.

        Raises:
            ValueError: a model without routers, see `RoutingRecorder`.
        """
        self._model: Any = model
        self.recorder = RoutingRecorder(model)
        self.num_forwarded = 0
        self.num_steps = 0

    def __enter__(self) -> Decoder:
        self.recorder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.recorder.__exit__(*error)

    def prefill(self, token_ids: Sequence[int]) -> Decoded:
        """Read a prefix of at least one token.

        Raises:
            ValueError: the model gives a score that is not a number.
        """
        return self._forward(torch.tensor([list(token_ids)]), None)

    def step(self, cache: Cache, token_ids: Sequence[int]) -> Decoded:
        """Feed one token to each row; the cache is written to and given back.

        Raises:
            ValueError: the model gives a score that is not a number.
        """
        return self._forward(torch.tensor(token_ids)[:, None], cache)

    @torch.inference_mode()
    def _forward(self, input_ids_RS: Tensor, cache: Cache | None) -> Decoded:
        output = self._model(
            input_ids=input_ids_RS.to(self._model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        self.num_forwarded += input_ids_RS.numel()
        self.num_steps += 1
        log_RV = output.logits[:, -1].double().log_softmax(dim=-1).cpu().numpy()
        routing = self.recorder.take()
        if np.isnan(log_RV).any():
            raise ValueError(
                "--model (logits that are NaN) must give numbers; check its weights, or try --dtype float32"
            )
        return Decoded(log_RV, routing.expert_ids_NLK, output.past_key_values)
