"""Routing of consecutive tokens in memory: what recorders yield, traces hold, and metrics read."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts, S pieces of sequences in the chunk.

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingChunk:
    """Routing of N tokens in MoE layers, cut into the pieces of sequences that they belong to.

    A chunk may begin inside a sequence and may end inside one: its first and last pieces may be parts. A sequence
    that is cut goes on at the beginning of the next chunk.
    """

    expert_ids_NLK: NDArray[np.integer]
    """Integers [tokens, MoE layers, experts per token], counted from 0, the highest weight first: `[..., 0]` is the
    top-1 path, unless `TraceHeader.is_sorted_by_weight` is False."""
    token_ids_N: NDArray[np.integer]
    """Integers [tokens]: the input token at each position."""
    starts_S1: NDArray[np.int64]
    """int64 [pieces + 1], ascending from 0 to N: piece s holds the tokens starts_S1[s] to starts_S1[s + 1]."""
    weights_NLK: NDArray[np.floating] | None = None
    """Floats [tokens, MoE layers, experts per token]: what the outputs of `expert_ids_NLK` are multiplied by."""
    logits_NLE: NDArray[np.floating] | None = None
    """Floats [tokens, MoE layers, experts]: router logits before softmax or sigmoid, before any bias."""
    predicted_ids_N: NDArray[np.integer] | None = None
    """Integers [tokens]: the model's most probable next token at each position."""
    sequence_ids_S: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64 [pieces]: rows of `RoutingTrace.sequences()`; 0, 1, 2, ... where it is left out."""
    first_position: int = 0
    """Position of the chunk's first token in its sequence; every other piece begins where its sequence begins."""

    def __post_init__(self) -> None:
        """Check that the arrays are of one size, and number the sequences where nobody did."""
        num_tokens = _num_tokens(self.expert_ids_NLK)
        _check_starts(self.starts_S1, num_tokens)
        if len(self.sequence_ids_S) == 0:
            object.__setattr__(self, "sequence_ids_S", np.arange(len(self.starts_S1) - 1, dtype=np.int64))
        layers_and_experts = self.expert_ids_NLK.shape[1:]
        expected = {
            "token_ids_N": (num_tokens,),
            "weights_NLK": (num_tokens, *layers_and_experts),
            "logits_NLE": (num_tokens, layers_and_experts[0], None),
            "predicted_ids_N": (num_tokens,),
            "sequence_ids_S": (len(self.starts_S1) - 1,),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and not _has_shape(value, shape):
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise ValueError(
                    f"{name} ({value.dtype} {list(value.shape)}) must be {_kind_of(name)} [{wanted}]; "
                    f"pass one row a token of expert_ids_NLK ({list(self.expert_ids_NLK.shape)})"
                )
        if self.first_position < 0:
            raise ValueError(
                f"first_position ({self.first_position}) must be at least 0; count from the sequence's start"
            )

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.token_ids_N)

    def sequence_of_token_N(self) -> NDArray[np.int64]:
        """int64 [tokens]: the sequence of each token, as a row of `RoutingTrace.sequences()`."""
        return np.repeat(self.sequence_ids_S, np.diff(self.starts_S1))

    def position_of_token_N(self) -> NDArray[np.int64]:
        """int64 [tokens]: the position of each token in its sequence, from 0."""
        begins_S = self.starts_S1[:-1].copy()
        begins_S[:1] -= self.first_position
        return np.arange(self.num_tokens, dtype=np.int64) - np.repeat(begins_S, np.diff(self.starts_S1))


def _num_tokens(expert_ids_NLK: NDArray[np.integer]) -> int:
    if expert_ids_NLK.ndim != 3 or expert_ids_NLK.dtype.kind not in "iu":
        found = f"{expert_ids_NLK.dtype} {list(expert_ids_NLK.shape)}"
        raise ValueError(
            f"expert_ids_NLK ({found}) must be integers [tokens, layers, experts per token]; reshape or convert it"
        )
    return len(expert_ids_NLK)


def _check_starts(starts_S1: NDArray[np.int64], num_tokens: int) -> None:
    is_list = starts_S1.ndim == 1 and starts_S1.dtype.kind in "iu" and len(starts_S1) > 0
    if not (is_list and starts_S1[0] == 0 and starts_S1[-1] == num_tokens and np.all(np.diff(starts_S1) > 0)):
        raise ValueError(
            f"starts_S1 ({starts_S1.dtype} {list(starts_S1.shape)}) must ascend from 0 to the number of tokens "
            f"({num_tokens}); leave out empty sequences"
        )


def _kind_of(name: str) -> str:
    return "floats" if name in ("weights_NLK", "logits_NLE") else "integers"


def _has_shape(value: NDArray[np.generic], shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(value.shape, shape, strict=True)
    )
