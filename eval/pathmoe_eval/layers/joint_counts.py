"""Joint counts of the experts that a token takes in two layers: what mutual information and matching are made from."""

# Shapes: N tokens, L MoE layers, P pairs of layers, A = L - 1 adjacent pairs, E experts, K experts per token,
# W words of a set, X words of 64 tokens.

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.layer_blocks import layer_pairs
from pathmoe_eval.layers.expert_sets import pad_tokens, set_blocks
from pathmoe_eval.mergeable import difference
from pathmoe_eval.routing_shape import RoutingShape

_MAX_EXPERTS_OF_PLANES = 128
_MAX_CELLS = 1 << 25


class JointCounts:
    """How often each pair of experts occurs in two layers of one token, from chunks of any size.

    Top-1 experts are counted for all pairs of layers, or for adjacent pairs only where the tables of all would take
    more than 256 MiB (num_layers (num_layers - 1) / 2 tables of num_experts^2 counts); top-k sets for adjacent pairs.

    Attributes:
        shape: of the routing.
        num_tokens: tokens that were counted.
        pairs: the pairs of layers (l, m), l < m, that `top1_PEE` counts.
        top1_PEE: tokens whose top-1 expert is e in the first layer of a pair and f in the second.
        sets_AEE: tokens whose top-k set has e in layer l and f in layer l + 1.
    """

    def __init__(self, *, num_layers: int, num_experts: int, num_experts_per_tok: int) -> None:
        """Count routing of this shape, of at least two layers."""
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        if num_layers < 2:
            raise ValueError(f"num_layers ({num_layers}) must be at least 2; pairs of layers need two MoE layers")
        pairs = layer_pairs(num_layers)
        if len(pairs) * num_experts**2 > _MAX_CELLS:
            pairs = tuple((layer, layer + 1) for layer in range(num_layers - 1))
        self.pairs = pairs
        self.num_tokens = 0
        self.top1_PEE = np.zeros((len(pairs), num_experts, num_experts), dtype=np.int64)
        self.sets_AEE = np.zeros((num_layers - 1, num_experts, num_experts), dtype=np.int64)

    @property
    def has_all_pairs(self) -> bool:
        """Whether `top1_PEE` counts all pairs of layers, not only adjacent ones."""
        return self.pairs == layer_pairs(self.shape.num_layers)

    def top1_loads(self) -> NDArray[np.int64]:
        """Tokens whose top-1 expert is e in layer l, [layers, experts]."""
        adjacent_AEE = self.adjacent_top1()
        return np.concatenate([adjacent_AEE.sum(axis=2), adjacent_AEE[-1:].sum(axis=1)])

    def adjacent_top1(self) -> NDArray[np.int64]:
        """The tables of `top1_PEE` of the pairs (l, l + 1), [adjacent pairs, experts, experts]."""
        return self.top1_PEE[[second == first + 1 for first, second in self.pairs]]

    def update(self, expert_ids_NLK: NDArray[np.integer]) -> None:
        """Add a chunk: integers [tokens, layers, experts per token], counted from 0, highest weight first.

        Raises:
            ValueError: wrong shape or dtype, an id out of range, or an expert twice in one token and layer.
        """
        for ids_KLN, masks_WLN in set_blocks(self.shape, expert_ids_NLK):
            self.add_block(ids_KLN, masks_WLN)

    def add_block(self, ids_KLN: NDArray[np.integer], masks_WLN: NDArray[np.unsignedinteger]) -> None:
        """Add one of `set_blocks`."""
        self.num_tokens += ids_KLN.shape[-1]
        ids_KLN = ids_KLN.astype(np.int64)
        rows_LN = ids_KLN[0] * self.shape.num_experts
        for (first, second), joint_EE in zip(self.pairs, self.top1_PEE, strict=True):
            _count(rows_LN[first] + ids_KLN[0, second], joint_EE)
        if self.shape.num_experts <= _MAX_EXPERTS_OF_PLANES:
            _count_sets_by_planes(masks_WLN, self.sets_AEE)
        else:
            _count_sets_by_ids(ids_KLN, self.sets_AEE)

    def merge(self, other: JointCounts) -> None:
        """Add everything that `other`, of the same shape, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two have different shapes.
        """
        self.shape.check_mergeable(other.shape)
        self.num_tokens += other.num_tokens
        self.top1_PEE += other.top1_PEE
        self.sets_AEE += other.sets_AEE

    def without(self, part: JointCounts) -> JointCounts:
        """Counts of the tokens that are not in `part`, some of those that were counted here."""
        return difference(self, part, "num_tokens", "top1_PEE", "sets_AEE")


def _count_sets_by_planes(masks_WLN: NDArray[np.unsignedinteger], sets_AEE: NDArray[np.int64]) -> None:
    """Add joint counts of adjacent layers' sets, 64 tokens at a time: work of num_experts^2 / 64 a token."""
    planes_LEX = [
        _bit_planes(masks_WN, sets_AEE.shape[-1]) for masks_WN in pad_tokens(masks_WLN, 64).transpose(1, 0, 2)
    ]
    for joint_EE, (first_EX, second_EX) in zip(sets_AEE, pairwise(planes_LEX), strict=True):
        for joint_E, first_X in zip(joint_EE, first_EX, strict=True):
            joint_E += np.bitwise_count(first_X & second_EX).sum(axis=1, dtype=np.int64)


def _bit_planes(masks_WN: NDArray[np.unsignedinteger], num_experts: int) -> NDArray[np.uint64]:
    """For each expert one bit a token that says whether the token takes it."""
    shifts_E1 = np.arange(8 * masks_WN.itemsize, dtype=masks_WN.dtype)[:, None]
    bits_EN = np.concatenate([(masks_N >> shifts_E1).astype(np.uint8) & 1 for masks_N in masks_WN])[:num_experts]
    return np.packbits(bits_EN, axis=1).view(np.uint64)


def _count_sets_by_ids(ids_KLN: NDArray[np.integer], sets_AEE: NDArray[np.int64]) -> None:
    """The same from the ids themselves: work of num_experts_per_tok^2 a token."""
    for layer, joint_EE in enumerate(sets_AEE):
        for ids_N in ids_KLN[:, layer]:
            _count((ids_N * len(joint_EE) + ids_KLN[:, layer + 1]).ravel(), joint_EE)


def _count(cells_N: NDArray[np.integer], joint_EE: NDArray[np.int64]) -> None:
    joint_EE += np.bincount(cells_N, minlength=joint_EE.size).reshape(joint_EE.shape)
