"""Sustained engagement: for how many consecutive layers a token keeps an expert index, and what chance gives.

PathMoE (arXiv 2603.18297) reports engagement over at least 4 consecutive layers and leaves its unit open, so all are
here, for every length: tokens (top-1), runs and picks (top-1, and of top-k sets). They compare expert indices, which
means nothing between independent routers; within blocks of layers that share one, it does. What relabelling does not
change is in `information.py` and `matching.py`.
"""

# Shapes: N tokens, L MoE layers, M = L lengths of runs, E experts, K experts per token, W words of a set.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.experts.load import count_picks
from pathmoe_eval.layer_blocks import check_router_of_layer, layer_blocks
from pathmoe_eval.layers.expert_sets import pad_tokens, set_blocks, set_masks
from pathmoe_eval.layers.run_lengths import RunStatistics, expected_windows, longest_run_null, run_statistics
from pathmoe_eval.mergeable import check_mergeable, difference
from pathmoe_eval.routing_shape import RoutingShape, check_some_tokens

_COUNTED_WORD_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class EngagementFigures:
    """Sustained engagement of one sample, or of a null."""

    token_share: tuple[float, ...]
    """For m = 1, ..., L: share of tokens that keep some top-1 expert for at least m consecutive layers."""
    top1_runs: RunStatistics
    """Runs of the top-1 expert."""
    topk_runs: RunStatistics
    """Runs of each expert in the top-k sets, whatever its rank."""


@dataclass(frozen=True, kw_only=True)
class EngagementInScope:
    """Sustained engagement and its nulls, over all layers or within blocks."""

    observed: EngagementFigures
    """Of the tokens that were counted."""
    null_loads: EngagementFigures
    """Of layers that choose independently with the loads that were observed: exact for `token_share` and `pick_share`,
    ratios of expected numbers for shares of runs and mean lengths."""
    null_uniform: EngagementFigures
    """The same with uniform loads."""


@dataclass(frozen=True, kw_only=True)
class Engagement:
    """Sustained engagement; index figures, meaningless where a run goes from one router to another."""

    num_tokens: int
    """Tokens that were counted."""
    all_layers: EngagementInScope
    """Runs over any layers; one that goes from one router to another is a matter of naming."""
    within_blocks: EngagementInScope
    """Runs cut at the ends of blocks of layers that share a router; longer ones than the longest block do not occur."""


class EngagementCounts:
    """Counts of windows and of longest runs from chunks of any size, in memory that does not grow with the tokens.

    The counts are integers, so the result does not depend on the order of the tokens or on batching and merging.
    """

    def __init__(
        self, *, num_layers: int, num_experts: int, num_experts_per_tok: int, router_of_layer: Sequence[int]
    ) -> None:
        """Count routing of this shape; `router_of_layer` has one integer a layer, equal where a router is shared."""
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        self.router_of_layer = check_router_of_layer(router_of_layer, num_layers)
        self._scopes = ((range(num_layers),), layer_blocks(self.router_of_layer))
        self.num_tokens = 0
        # First of the top-1 expert, then of the top-k sets.
        self._windows_2LM = np.zeros((2, num_layers, num_layers), dtype=np.int64)
        self._loads_2LE = np.zeros((2, num_layers, num_experts), dtype=np.int64)
        # First over all layers, then within blocks: tokens whose longest run has length 0 (none), ..., L.
        self._longest_2M1 = np.zeros((2, num_layers + 1), dtype=np.int64)

    def update(self, expert_ids_NLK: NDArray[np.integer]) -> None:
        """Add a chunk: integers [tokens, layers, experts per token], counted from 0, highest weight first.

        Raises:
            ValueError: wrong shape or dtype, an id out of range, or an expert twice in one token and layer.
        """
        for ids_KLN, masks_WLN in set_blocks(self.shape, expert_ids_NLK):
            self.add_block(ids_KLN, masks_WLN)

    def add_block(self, ids_KLN: NDArray[np.integer], masks_WLN: NDArray[np.unsignedinteger]) -> None:
        """Add one of `set_blocks`."""
        self.num_tokens += masks_WLN.shape[-1]
        for longest_M1, blocks in zip(self._longest_2M1, self._scopes, strict=True):
            longest_M1 += np.bincount(longest_runs(ids_KLN[0], blocks), minlength=len(longest_M1))
        _add_windows(set_masks(ids_KLN[:1], self.shape.num_experts), self._windows_2LM[0])
        _add_windows(masks_WLN, self._windows_2LM[1])
        for loads_LE, picks_KLN in zip(self._loads_2LE, (ids_KLN[:1], ids_KLN), strict=True):
            loads_LE += count_picks(picks_KLN.transpose(1, 0, 2), self.shape.num_experts)

    def merge(self, other: EngagementCounts) -> None:
        """Add everything that `other`, of the same shape and routers, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two have different shapes or routers.
        """
        self.shape.check_mergeable(other.shape)
        check_mergeable(self, other, "router_of_layer")
        self.num_tokens += other.num_tokens
        self._windows_2LM += other._windows_2LM
        self._loads_2LE += other._loads_2LE
        self._longest_2M1 += other._longest_2M1

    def without(self, part: EngagementCounts) -> EngagementCounts:
        """Counts of the tokens that are not in `part`, some of those that were counted here."""
        return difference(self, part, "num_tokens", "_windows_2LM", "_loads_2LE", "_longest_2M1")

    def result(self) -> Engagement:
        """Engagement over all tokens counted so far.

        Raises:
            ValueError: no token was counted.
        """
        check_some_tokens(self.num_tokens)
        all_layers, within_blocks = (self._in_scope(scope) for scope in range(2))
        return Engagement(num_tokens=self.num_tokens, all_layers=all_layers, within_blocks=within_blocks)

    def token_share(self) -> tuple[float, ...]:
        """`EngagementFigures.token_share` of the tokens, over all layers, alone and for less."""
        check_some_tokens(self.num_tokens)
        return self._token_share(0)

    def _token_share(self, scope: int) -> tuple[float, ...]:
        # From the top: tokens whose longest run has at least m layers.
        at_least_M = np.cumsum(self._longest_2M1[scope, :0:-1])[::-1]
        return tuple((at_least_M / self.num_tokens).tolist())

    def _in_scope(self, scope: int) -> EngagementInScope:
        blocks = self._scopes[scope]
        top1_runs, topk_runs = (run_statistics(windows_LM, blocks) for windows_LM in self._windows_2LM)
        top1_LE, taken_LE = self._loads_2LE / self.num_tokens
        uniform_LE = np.full_like(top1_LE, 1 / self.shape.num_experts)
        return EngagementInScope(
            observed=EngagementFigures(token_share=self._token_share(scope), top1_runs=top1_runs, topk_runs=topk_runs),
            null_loads=_null(top1_LE, taken_LE, blocks),
            null_uniform=_null(uniform_LE, uniform_LE * self.shape.num_experts_per_tok, blocks),
        )


def longest_runs(path_ids_LN: NDArray[np.integer], blocks: Sequence[range]) -> NDArray[np.int64]:
    """Length of the longest run of equal top-1 experts of each token, none longer than its block.

    Args:
        path_ids_LN: integers [layers, tokens].
        blocks: ranges of layers, which together are all of them.
    """
    longest_N = np.zeros(path_ids_LN.shape[1], dtype=np.uint16)
    for block in blocks:
        length_N = np.ones_like(longest_N)
        np.maximum(longest_N, length_N, out=longest_N)
        for layer in block[1:]:
            length_N *= path_ids_LN[layer] == path_ids_LN[layer - 1]
            length_N += 1
            np.maximum(longest_N, length_N, out=longest_N)
    return longest_N.astype(np.int64)


def _add_windows(masks_WLN: NDArray[np.unsignedinteger], windows_LM: NDArray[np.int64]) -> None:
    """Add, for each first layer and length, the experts that a token keeps, over all tokens."""
    # Tokens without experts fill the last of the wide words, which are counted several tokens at a time.
    masks_WLN = pad_tokens(masks_WLN, _COUNTED_WORD_BYTES // masks_WLN.itemsize)
    kept_WLN = masks_WLN
    for length in range(1, windows_LM.shape[1] + 1):
        if length > 1:
            kept_WLN = kept_WLN[:, :-1] & masks_WLN[:, length - 1 :]
        windows_L = np.bitwise_count(kept_WLN.view(np.uint64)).sum(axis=(0, 2), dtype=np.int64)
        if not windows_L.any():
            return
        windows_LM[: len(windows_L), length - 1] += windows_L


def _null(top1_LE: NDArray[np.float64], taken_LE: NDArray[np.float64], blocks: Sequence[range]) -> EngagementFigures:
    return EngagementFigures(
        token_share=tuple(longest_run_null(top1_LE, blocks).tolist()),
        top1_runs=run_statistics(expected_windows(top1_LE), blocks),
        topk_runs=run_statistics(expected_windows(taken_LE), blocks),
    )
