"""How much of a token's top-k expert set two layers have in common: Jaccard of all layer pairs, with its nulls.

Which expert of one layer is "the same" as one of another is a matter of naming unless the two share a router, so
between independent routers these figures mean nothing: read `information.py` and `matching.py`, which relabelling
does not change, beside them.
"""

# Shapes: N tokens, L MoE layers, M layers after one, P pairs of layers, E experts, K experts per token, W words of a
# set, S sets of experts, D sets that occur, C rows of them at a time, I = K + 1 sizes of an intersection.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.experts.load import count_picks
from pathmoe_eval.layer_blocks import LayerPairMeans, check_router_of_layer, layer_pair_means, layer_pairs
from pathmoe_eval.layers.expert_sets import set_blocks, set_sizes
from pathmoe_eval.mergeable import check_mergeable, difference
from pathmoe_eval.routing_shape import RoutingShape, check_some_tokens

_MAX_EXPERTS_OF_SET_COUNTS = 16
_ROWS_AT_A_TIME = 512


@dataclass(frozen=True, kw_only=True)
class LayerOverlap:
    """Overlap of the top-k sets of all pairs of layers, [layer][layer]; index figures, meaningless between routers.

    On the diagonal a figure compares a token with itself (1.0), and a null compares two independent tokens.
    """

    num_tokens: int
    """Tokens that were counted."""
    jaccard: tuple[tuple[float, ...], ...]
    """Mean over tokens of |A n B| / |A u B|."""
    jaccard_null_loads: tuple[tuple[float, ...], ...] | None
    """Its exact mean if every layer drew its sets as often as it did, independently of the others; None above 16
    experts, where sets are too many to count: there `jaccard_null_loads_ratio` is a lower bound."""
    jaccard_null_loads_ratio: tuple[tuple[float, ...], ...]
    """The same as a ratio of means, i / (2k - i) with i the expected |A n B|, exact for any number of experts."""
    jaccard_null_uniform: float
    """Mean for independent uniform sets: hypergeometric."""
    jaccard_null_uniform_ratio: float
    """Ratio of means for independent uniform sets, k / (2E - k): the baseline that papers print."""
    jaccard_means: LayerPairMeans
    """Means of `jaccard` over pairs."""
    jaccard_null_loads_means: LayerPairMeans | None
    """Means of `jaccard_null_loads` over pairs; None where that is None."""
    jaccard_null_loads_ratio_means: LayerPairMeans
    """Means of `jaccard_null_loads_ratio` over pairs."""
    shared: tuple[tuple[float, ...], ...]
    """Mean over tokens of |A n B| / k."""
    shared_null: tuple[tuple[float, ...], ...]
    """Its exact mean for independent layers with the same loads: sum over e of q_l(e) q_m(e) / k, with q the share of
    tokens that take e."""
    shared_means: LayerPairMeans
    """Means of `shared` over pairs."""
    shared_null_means: LayerPairMeans
    """Means of `shared_null` over pairs."""


class LayerOverlapCounts:
    """Exact histograms of |A n B| for all pairs of layers, from chunks of any size.

    The counts are integers, so the result does not depend on the order of the tokens or on batching and merging.
    Memory: 8 num_layers^2 num_experts_per_tok bytes, and up to 16 experts 8 num_layers 2^num_experts for the sets.
    """

    def __init__(
        self, *, num_layers: int, num_experts: int, num_experts_per_tok: int, router_of_layer: Sequence[int]
    ) -> None:
        """Count routing of this shape; `router_of_layer` has one integer a layer, equal where a router is shared."""
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        self.router_of_layer = check_router_of_layer(router_of_layer, num_layers)
        self.num_tokens = 0
        self._shared_LLI = np.zeros((num_layers, num_layers, num_experts_per_tok + 1), dtype=np.int64)
        self._load_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
        counts_sets = num_experts <= _MAX_EXPERTS_OF_SET_COUNTS
        self._sets_LS = np.zeros((num_layers, 1 << num_experts if counts_sets else 0), dtype=np.int64)

    def update(self, expert_ids_NLK: NDArray[np.integer]) -> None:
        """Add a chunk: integers [tokens, layers, experts per token], counted from 0, in any order within a token.

        Raises:
            ValueError: wrong shape or dtype, an id out of range, or an expert twice in one token and layer.
        """
        for ids_KLN, masks_WLN in set_blocks(self.shape, expert_ids_NLK):
            self.add_block(ids_KLN, masks_WLN)

    def add_block(self, ids_KLN: NDArray[np.integer], masks_WLN: NDArray[np.unsignedinteger]) -> None:
        """Add one of `set_blocks`."""
        self.num_tokens += masks_WLN.shape[-1]
        self._add_shared(masks_WLN)
        self._load_LE += count_picks(ids_KLN.transpose(1, 0, 2), self.shape.num_experts)
        if self._sets_LS.size:
            for sets_S, masks_N in zip(self._sets_LS, masks_WLN[0], strict=True):
                sets_S += np.bincount(masks_N, minlength=len(sets_S))

    def merge(self, other: LayerOverlapCounts) -> None:
        """Add everything that `other`, of the same shape and routers, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two have different shapes or routers.
        """
        self.shape.check_mergeable(other.shape)
        check_mergeable(self, other, "router_of_layer")
        self.num_tokens += other.num_tokens
        self._shared_LLI += other._shared_LLI
        self._load_LE += other._load_LE
        self._sets_LS += other._sets_LS

    def without(self, part: LayerOverlapCounts) -> LayerOverlapCounts:
        """Counts of the tokens that are not in `part`, some of those that were counted here."""
        return difference(self, part, "num_tokens", "_shared_LLI", "_load_LE", "_sets_LS")

    def result(self) -> LayerOverlap:
        """Overlaps over all tokens counted so far.

        Raises:
            ValueError: no token was counted.
        """
        check_some_tokens(self.num_tokens)
        num_picks = self.shape.num_experts_per_tok
        shared_LLI = self._symmetric()
        shared_LL = shared_LLI @ np.arange(num_picks + 1) / (self.num_tokens * num_picks)
        jaccard_LL = shared_LLI @ jaccard_of_sizes(num_picks) / self.num_tokens
        load_LE = self._load_LE / self.num_tokens
        expected_LL = load_LE @ load_LE.T
        ratio_LL = expected_LL / (2 * num_picks - expected_LL)
        sets_LL = _expected_jaccard(self._sets_LS, num_picks) if self._sets_LS.size else None
        return LayerOverlap(
            num_tokens=self.num_tokens,
            jaccard=_nested(jaccard_LL),
            jaccard_null_loads=None if sets_LL is None else _nested(sets_LL),
            jaccard_null_loads_ratio=_nested(ratio_LL),
            jaccard_null_uniform=jaccard_null_uniform(self.shape.num_experts, num_picks),
            jaccard_null_uniform_ratio=jaccard_null_uniform_ratio(self.shape.num_experts, num_picks),
            jaccard_means=self._means(jaccard_LL),
            jaccard_null_loads_means=None if sets_LL is None else self._means(sets_LL),
            jaccard_null_loads_ratio_means=self._means(ratio_LL),
            shared=_nested(shared_LL),
            shared_null=_nested(expected_LL / num_picks),
            shared_means=self._means(shared_LL),
            shared_null_means=self._means(expected_LL / num_picks),
        )

    def jaccard_means(self) -> LayerPairMeans:
        """`LayerOverlap.jaccard_means` alone, for less."""
        check_some_tokens(self.num_tokens)
        return self._means(self._symmetric() @ jaccard_of_sizes(self.shape.num_experts_per_tok) / self.num_tokens)

    def _symmetric(self) -> NDArray[np.int64]:
        """Tokens with 0, 1, ..., k experts in common, for all pairs of layers in both orders and each with itself."""
        shared_LLI = self._shared_LLI + self._shared_LLI.transpose(1, 0, 2)
        layers = range(self.shape.num_layers)
        shared_LLI[layers, layers, -1] = self.num_tokens
        return shared_LLI

    def _add_shared(self, masks_WLN: NDArray[np.unsignedinteger]) -> None:
        num_tokens = masks_WLN.shape[-1]
        for layer in range(self.shape.num_layers - 1):
            common_WMN = masks_WLN[:, layer, None] & masks_WLN[:, layer + 1 :]
            size_MN = set_sizes(common_WMN)
            # Compare and count: numpy does both several values at a time, unlike a histogram.
            at_least_M = np.full(len(size_MN), num_tokens)
            for size in range(self.shape.num_experts_per_tok):
                is_more_MN = size_MN > size
                more_M = np.array([np.count_nonzero(is_more_N) for is_more_N in is_more_MN])
                self._shared_LLI[layer, layer + 1 :, size] += at_least_M - more_M
                at_least_M = more_M
            self._shared_LLI[layer, layer + 1 :, -1] += at_least_M

    def _means(self, figure_LL: NDArray[np.float64]) -> LayerPairMeans:
        pairs = layer_pairs(self.shape.num_layers)
        return layer_pair_means([float(figure_LL[pair]) for pair in pairs], pairs, self.router_of_layer)


def jaccard_of_sizes(num_experts_per_tok: int) -> NDArray[np.float64]:
    """Jaccard of two sets of k experts with 0, 1, ..., k in common: i / (2k - i)."""
    sizes_I = np.arange(num_experts_per_tok + 1)
    return sizes_I / (2 * num_experts_per_tok - sizes_I)


def jaccard_null_uniform(num_experts: int, num_experts_per_tok: int) -> float:
    """Mean Jaccard of two independent uniform sets of k of E experts: |A n B| is hypergeometric."""
    total, picks = num_experts, num_experts_per_tok
    ways = [comb(picks, size) * comb(total - picks, picks - size) for size in range(picks + 1)]
    return sum(way / comb(total, picks) * size / (2 * picks - size) for size, way in enumerate(ways))


def jaccard_null_uniform_ratio(num_experts: int, num_experts_per_tok: int) -> float:
    """Mean |A n B| over mean |A u B| of two independent uniform sets: k / (2E - k), below the mean of the ratio."""
    return num_experts_per_tok / (2 * num_experts - num_experts_per_tok)


def _expected_jaccard(sets_LS: NDArray[np.int64], num_experts_per_tok: int) -> NDArray[np.float64]:
    """Mean Jaccard of a set of one layer and an independent one of another, [layers, layers], from counts of sets."""
    masks_D = np.flatnonzero(sets_LS.any(axis=0))
    share_LD = sets_LS[:, masks_D] / sets_LS.sum(axis=1, keepdims=True)
    jaccard_I = jaccard_of_sizes(num_experts_per_tok)
    expected_DL = np.empty(share_LD.T.shape)
    for start in range(0, len(masks_D), _ROWS_AT_A_TIME):
        masks_C = masks_D[start : start + _ROWS_AT_A_TIME]
        jaccard_CD = jaccard_I[np.bitwise_count(masks_C[:, None] & masks_D)]
        expected_DL[start : start + _ROWS_AT_A_TIME] = jaccard_CD @ share_LD.T
    expected_LL: NDArray[np.float64] = share_LD @ expected_DL
    return expected_LL


def _nested(figure_LL: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, figure_LL.tolist()))
