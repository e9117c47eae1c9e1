"""Which experts of a layer are picked together (OLMoE, arXiv 2409.02060, Eq. 6)."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.experts.load import count_picks
from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.routing_shape import RoutingShape, by_layer, check_some_tokens

_TOP_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class CoactivatedPair:
    """Two experts of a layer."""

    expert: int
    """Ei, whose tokens are counted."""
    partner: int
    """Ej, which they pick as well."""
    num_tokens: int
    """N(Ei, Ej)."""
    share: float
    """N(Ei, Ej) / N(Ei)."""
    lift: float
    """`share` over the share of all tokens that pick Ej: how many times more often than if Ei did not matter."""


@dataclass(frozen=True, kw_only=True)
class Coactivation:
    """Co-activation within layers; tuples have one entry per layer. `CoactivationCounts.pairs_LEE` has every pair."""

    num_tokens: int
    """Tokens that were counted."""
    olmoe_script: bool
    """Whether only pairs of adjacent ranks were counted, as OLMoE's script does."""
    share_null: float
    """Share of every pair if all sets of experts were equally likely: (k-1)/(E-1), or 2(k-1)/(k(E-1)) for adjacent
    ranks. An expert's shares always average to this over its partners, so only how they spread says something."""
    lift_null: float
    """Lift of every pair in that case: below 1, since a token that picks Ei has one pick less for Ej."""
    strongest_share: tuple[float, ...]
    """Mean, over experts with a token, of the share of the partner that is picked most with them."""
    mean_strongest_share: float
    """Mean of `strongest_share` over layers."""
    top_pairs: tuple[tuple[CoactivatedPair, ...], ...]
    """The ordered pairs of the highest share, highest first (at equal share by count, then by index)."""


class CoactivationCounts:
    """Tokens of every pair of a layer's experts, in 8 * num_layers * num_experts^2 bytes; integers, in any order.

    Counts all pairs of a token's experts, as the formula of Eq. 6 says. `olmoe_script=True` counts, as
    scripts/run_moe_analysis.py of OLMoE does, only experts of adjacent ranks (first and second, second and third, ...)
    over the same N(Ei) of all picks, so its shares are 2/k of the formula's on average.
    """

    def __init__(
        self, *, num_layers: int, num_experts: int, num_experts_per_tok: int, olmoe_script: bool = False
    ) -> None:
        """Count for a model of this shape.

        Raises:
            ValueError: as in `RoutingShape`, or fewer than two experts per token.
        """
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        if num_experts_per_tok < 2:
            raise ValueError(
                f"num_experts_per_tok ({num_experts_per_tok}) must be at least 2; "
                "co-activation needs two experts per token, leave it out for a top-1 model"
            )
        self.olmoe_script = olmoe_script
        self.num_tokens = 0
        self._picks_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
        # row: the expert of higher rank
        self._ranked_LEE = np.zeros((num_layers, num_experts, num_experts), dtype=np.int64)

    def update(self, expert_ids_NLK: NDArray[np.integer]) -> None:
        """Add a chunk.

        Raises:
            ValueError: as in `RoutingShape.check`, or a token that picks an expert twice.
        """
        expert_ids_LKN = by_layer(self.shape.check(expert_ids_NLK))
        ranks = range(self.shape.num_experts_per_tok)
        rank_pairs = list(pairwise(ranks) if self.olmoe_script else combinations(ranks, 2))
        ranked_LEE = np.stack([_count_pairs(ids_KN, rank_pairs, self.shape.num_experts) for ids_KN in expert_ids_LKN])
        if ranked_LEE.trace(axis1=1, axis2=2).any():
            layer = int(np.flatnonzero(ranked_LEE.trace(axis1=1, axis2=2))[0])
            raise ValueError(
                f"expert_ids (an expert twice for one token of layer {layer}) must be different experts; "
                "pass ids as the router chose them"
            )
        self._picks_LE += count_picks(expert_ids_LKN, self.shape.num_experts)
        self._ranked_LEE += ranked_LEE
        self.num_tokens += expert_ids_LKN.shape[-1]

    def merge(self, other: CoactivationCounts) -> None:
        """Add everything that `other` has counted; `other` keeps its counts.

        Raises:
            ValueError: the two are of different shapes, or count different pairs.
        """
        self.shape.check_mergeable(other.shape)
        check_mergeable(self, other, "olmoe_script")
        self._picks_LE += other._picks_LE
        self._ranked_LEE += other._ranked_LEE
        self.num_tokens += other.num_tokens

    @property
    def pairs_LEE(self) -> NDArray[np.int64]:
        """N(Ei, Ej), int64 [layers, experts, experts], symmetric; on the diagonal N(Ei), the tokens that pick Ei."""
        pairs_LEE = self._ranked_LEE + self._ranked_LEE.transpose(0, 2, 1)
        experts = np.arange(self.shape.num_experts)
        pairs_LEE[:, experts, experts] = self._picks_LE
        return pairs_LEE

    def result(self) -> Coactivation:
        """Co-activation over all tokens counted so far.

        Raises:
            ValueError: no token was counted.
        """
        check_some_tokens(self.num_tokens)
        pairs_LEE = self.pairs_LEE
        strongest = [_strongest_share(pairs_EE) for pairs_EE in pairs_LEE]
        share_null = self._share_null()
        return Coactivation(
            num_tokens=self.num_tokens,
            olmoe_script=self.olmoe_script,
            share_null=share_null,
            lift_null=share_null * self.shape.num_experts / self.shape.num_experts_per_tok,
            strongest_share=tuple(strongest),
            mean_strongest_share=float(np.mean(strongest)),
            top_pairs=tuple(top_pairs(pairs_EE, self.num_tokens, _TOP_PAIRS) for pairs_EE in pairs_LEE),
        )

    def _share_null(self) -> float:
        per_token, num_experts = self.shape.num_experts_per_tok, self.shape.num_experts
        # partners that are counted with each of a token's experts, on average
        partners = 2 * (per_token - 1) / per_token if self.olmoe_script else per_token - 1
        return partners / (num_experts - 1)


def coactivation_share(pairs_EE: NDArray[np.int64]) -> NDArray[np.float64]:
    """N(Ei, Ej) / N(Ei) of one layer, float64 [experts Ei, experts Ej]; 0 in the row of an expert without tokens.

    Not symmetric; 1 on the diagonal of an expert with tokens.

    Args:
        pairs_EE: int64 [experts, experts], a layer of `CoactivationCounts.pairs_LEE`.
    """
    return pairs_EE / np.maximum(pairs_EE.diagonal(), 1)[:, None]


def top_pairs(pairs_EE: NDArray[np.int64], num_tokens: int, limit: int) -> tuple[CoactivatedPair, ...]:
    """The ordered pairs of one layer with the highest share, at most `limit`, without those that never occur.

    Args:
        pairs_EE: int64 [experts, experts], a layer of `CoactivationCounts.pairs_LEE`.
        num_tokens: tokens that were counted.
        limit: how many to return.
    """
    picks_E = pairs_EE.diagonal()
    share_EE = coactivation_share(pairs_EE)
    experts, partners = np.nonzero(pairs_EE * (1 - np.eye(len(pairs_EE), dtype=np.int64)))
    order = np.lexsort((partners, experts, -pairs_EE[experts, partners], -share_EE[experts, partners]))[:limit]
    return tuple(
        CoactivatedPair(
            expert=expert,
            partner=partner,
            num_tokens=int(pairs_EE[expert, partner]),
            share=float(share_EE[expert, partner]),
            lift=float(share_EE[expert, partner] * num_tokens / picks_E[partner]),
        )
        for expert, partner in zip(experts[order].tolist(), partners[order].tolist(), strict=True)
    )


def _count_pairs(ids_KN: NDArray[np.integer], rank_pairs: list[tuple[int, int]], num_experts: int) -> NDArray[np.int64]:
    """Tokens with expert a at the one rank and b at the other, int64 [a, b], summed over pairs of ranks."""
    # The narrowest cells that hold the product: what is added and counted is memory traffic.
    rows_KN = ids_KN.astype(np.min_scalar_type(num_experts**2 - 1)) * num_experts
    counts = np.zeros(num_experts**2, dtype=np.int64)
    for high, low in rank_pairs:
        counts += np.bincount(rows_KN[high] + ids_KN[low], minlength=num_experts**2)
    return counts.reshape(num_experts, num_experts)


def _strongest_share(pairs_EE: NDArray[np.int64]) -> float:
    share_EE = coactivation_share(pairs_EE)
    np.fill_diagonal(share_EE, 0)
    return float(np.mean(np.sort(share_EE.max(axis=1)[pairs_EE.diagonal() > 0])))
