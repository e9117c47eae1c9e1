"""The shape of a model's routing, which every chunk of its expert ids must have."""

# Shapes: N tokens, L MoE layers, K experts per token.

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


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
        lowest, highest = int(expert_ids_NLK.min(initial=0)), int(expert_ids_NLK.max(initial=0))
        if lowest < 0 or highest >= self.num_experts:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"expert_ids ({wrong}) must be at least 0 and below num_experts ({self.num_experts}); "
                "leave out padding and pass the model's num_experts"
            )
        return expert_ids_NLK

    def check_mergeable(self, other: RoutingShape) -> None:
        """Raise ValueError unless `other` is the same shape."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                raise ValueError(
                    f"other.{field.name} ({theirs}) must equal {field.name} ({ours}); merge counts of one model only"
                )


def by_layer(expert_ids_NLK: NDArray[np.integer]) -> NDArray[np.integer]:
    """Contiguous [layers, experts per token, tokens]: what is counted layer by layer then reads memory once."""
    return np.ascontiguousarray(expert_ids_NLK.transpose(1, 2, 0))
