"""The shape of a model's routing, which every chunk of its expert ids must have, and that it has tokens."""

# Shapes: N tokens, L MoE layers, K experts per token.

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.id_range import check_id_range
from pathmoe_eval.mergeable import check_mergeable

_TOKENS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class RoutingShape:
    """Numbers that all chunks of one model's routing share.

    Raises:
        ValueError: a number below 1, or more experts per token than experts.
    """

    num_layers: int
    """MoE layers; dense layers do not count."""
    num_experts: int
    """Experts of each layer: expert ids lie in [0, num_experts)."""
    num_experts_per_tok: int
    """Experts that each token is sent to in each layer."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise ValueError(f"{field.name} ({value}) must be at least 1; pass the model's {field.name}")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must be at most num_experts ({self.num_experts}); "
                "pass the model's own numbers"
            )

    def check(self, expert_ids_NLK: NDArray[np.integer]) -> NDArray[np.integer]:
        """A chunk of expert ids as an array of this shape (a chunk without tokens is fine).

        Args:
            expert_ids_NLK: integers [tokens, layers, experts per token], experts counted from 0, highest weight first.

        Raises:
            ValueError: another shape, no integers, or an id out of range.
        """
        expert_ids_NLK = np.asarray(expert_ids_NLK)
        expected = [self.num_layers, self.num_experts_per_tok]
        if expert_ids_NLK.dtype.kind not in "iu" or list(expert_ids_NLK.shape[1:]) != expected:
            raise ValueError(
                f"expert_ids ({expert_ids_NLK.dtype} {list(expert_ids_NLK.shape)}) must be integers [tokens, "
                f"{self.num_layers}, {self.num_experts_per_tok}]; pass every MoE layer's experts of each token"
            )
        check_id_range(
            expert_ids_NLK,
            self.num_experts,
            name="expert_ids",
            limit_name="num_experts",
            advice="leave out padding and pass the model's num_experts",
        )
        return expert_ids_NLK

    def check_mergeable(self, other: RoutingShape) -> None:
        """Raise ValueError unless `other` is the same shape."""
        check_mergeable(self, other, *(field.name for field in fields(self)))


def check_some_tokens(num_tokens: int) -> None:
    """Raise ValueError if no token was counted."""
    if num_tokens == 0:
        raise ValueError("num_tokens (0) must be at least 1; pass more data, or mask less of it")


def by_layer(expert_ids_NLK: NDArray[np.integer]) -> NDArray[np.integer]:
    """Contiguous [layers, experts per token, tokens]: what is counted layer by layer then reads memory once."""
    return tokens_last(expert_ids_NLK.transpose(1, 2, 0))


def tokens_last(ids_N: NDArray[np.integer]) -> NDArray[np.integer]:
    """Contiguous copy of a view whose last axis, the tokens, is the first in memory.

    Some tokens at a time, whose ids stay in cache while they are spread: several times as fast as a copy of all.
    """
    copied_N = np.empty(ids_N.shape, dtype=ids_N.dtype)
    for start in range(0, ids_N.shape[-1], _TOKENS_AT_ONCE):
        tokens = slice(start, start + _TOKENS_AT_ONCE)
        copied_N[..., tokens] = ids_N[..., tokens]
    return copied_N
