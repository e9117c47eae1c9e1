"""Recorded routing: of one forward, as it lies on the model's device, and of many, sorted and on the CPU."""

# Shapes: T tokens of one forward, N tokens of all forwards, L MoE layers, E experts, K experts per token, B batch,
# S sequence.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathmoe_eval.id_range import check_id_range


@dataclass(frozen=True, eq=False, kw_only=True)
class ForwardRouting:
    """The routing of one forward, layers first, in the order of experts that the router gave."""

    expert_ids_LTK: Tensor
    """Integers of any type."""
    weights_LTK: Tensor
    """Floating point of any type."""
    logits_LTE: Tensor | None
    """Floating point of any type, if recorded."""
    shape: tuple[int, int]
    """Batch and sequence length, whose product is T."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordedRouting:
    """The routing of some forwards, one behind the other in the order in which they ran.

    The rows of a forward are its tokens [batch * sequence] as the experts saw them, padding included: an attention mask
    [batch, sequence] of that forward, flattened, says which of its rows are tokens.
    """

    expert_ids_NLK: NDArray[np.unsignedinteger]
    """Experts of each token in each layer, uint8 where that holds them, highest weight first; equal weights stay in the
    order that the router gave."""
    weights_NLK: NDArray[np.float32] | None
    """What the output of each of these experts was multiplied by, if recorded."""
    logits_NLE: NDArray[np.float32] | None
    """Router logits before softmax or sigmoid and before a selection bias, if recorded."""
    shapes: tuple[tuple[int, int], ...]
    """Batch and sequence length of each forward."""

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Rows of each forward."""
        return tuple(batch * length for batch, length in self.shapes)

    def rows_by_sequence(self) -> NDArray[np.int64]:
        """Row [B, S] of each position of each sequence, for forwards that continue one batch, as `generate` runs them.

        Position s is that of the input token: `expert_ids_NLK[rows_BS]` [B, S, L, K] lines up with what `generate`
        returned but for its last column, which was never an input. Under beam search, a batch element holds another
        sequence from step to step.

        Raises:
            ValueError: forwards of different batch sizes.
        """
        sizes = sorted({batch for batch, _ in self.shapes})
        if len(sizes) != 1:
            raise ValueError(
                f"shapes (batch sizes {sizes}) must have one batch size; take the routing after each batch"
            )
        starts = np.cumsum([0, *self.num_tokens[:-1]])
        rows = [
            start + np.arange(batch * length).reshape(batch, length)
            for start, (batch, length) in zip(starts, self.shapes, strict=True)
        ]
        return np.concatenate(rows, axis=1)


def join_forwards(forwards: Sequence[ForwardRouting], num_experts: int, *, weights: bool) -> RecordedRouting:
    """What the forwards recorded, tokens first, each token's experts sorted by weight.

    Args:
        forwards: at least one, of one model.
        num_experts: what expert ids must be below.
        weights: whether the result has weights.

    Raises:
        ValueError: an expert id out of range.
    """
    expert_ids_NLK = _tokens_first([forward.expert_ids_LTK for forward in forwards])
    check_id_range(
        expert_ids_NLK.numpy(),
        num_experts,
        name="expert_ids",
        limit_name="num_experts",
        advice="record the model unsharded",
    )
    weights_NLK = _tokens_first([forward.weights_LTK for forward in forwards]).float()
    # A router sorts by score, which a selection bias makes another order, or does not sort.
    if not (weights_NLK[..., :-1] >= weights_NLK[..., 1:]).all():
        weights_NLK, order_NLK = weights_NLK.sort(dim=-1, descending=True, stable=True)
        expert_ids_NLK = expert_ids_NLK.gather(-1, order_NLK)
    logits = [forward.logits_LTE for forward in forwards if forward.logits_LTE is not None]
    return RecordedRouting(
        expert_ids_NLK=expert_ids_NLK.numpy().astype(np.min_scalar_type(num_experts - 1)),
        weights_NLK=weights_NLK.numpy() if weights else None,
        logits_NLE=_tokens_first(logits).float().numpy() if logits else None,
        shapes=tuple(forward.shape for forward in forwards),
    )


def _tokens_first(of_forwards: list[Tensor]) -> Tensor:
    return torch.cat([of_forward.cpu() for of_forward in of_forwards], dim=1).transpose(0, 1).contiguous()
