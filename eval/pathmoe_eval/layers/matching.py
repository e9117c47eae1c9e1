"""Overlap of layers after the best matching of their expert indices: agreement that does not depend on naming."""

# Shapes: L MoE layers, P pairs of layers, A = L - 1 adjacent pairs, E experts, B experts that have tokens.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pathmoe_eval.layer_blocks import LayerPairMeans, check_router_of_layer, layer_pair_means, square
from pathmoe_eval.layers.joint_counts import JointCounts
from pathmoe_eval.layers.permuted_tables import permuted_tables
from pathmoe_eval.routing_shape import check_some_tokens


@dataclass(frozen=True, kw_only=True)
class LayerMatching:
    """Overlap of layers under the one-to-one relabelling of experts that makes it highest; free of naming."""

    num_tokens: int
    """Tokens that were counted."""
    adjacent_agreement: tuple[float, ...]
    """Share of tokens whose top-1 experts in layers l and l + 1 are matched with each other."""
    adjacent_agreement_null_permuted: tuple[float, ...]
    """Its mean when the tokens of one layer are permuted, each permutation with a best matching of its own."""
    adjacent_agreement_null_permuted_highest: tuple[float, ...]
    """Highest of the permutations, of which there are `num_permutations`."""
    adjacent_agreement_null_loads: tuple[float, ...]
    """Best matching of the table that independent layers of these loads have on average: loads sorted, then
    multiplied. What `adjacent_agreement_null_permuted` has above it was fitted to noise: it goes to 0 with more
    tokens."""
    num_permutations: int
    """Seeded permutations behind the null."""
    adjacent_shared: tuple[float, ...]
    """Mean over tokens of |A n B| / k of the top-k sets, under the matching that makes it highest."""
    adjacent_shared_null: tuple[float, ...]
    """Best matching of the average table of independent layers with these loads; noise adds to it, not counted here."""
    agreement: tuple[tuple[float, ...], ...] | None
    """Matched top-1 agreement of all pairs of layers, [layer][layer], 1.0 on the diagonal; None where the tables of all
    pairs take too much memory: see `JointCounts`."""
    agreement_means: LayerPairMeans
    """Means of the matched top-1 agreement over pairs."""


def layer_matching(counts: JointCounts, router_of_layer: Sequence[int]) -> LayerMatching:
    """Overlap of layers after the best matching of their experts.

    The matching maximises the tokens on matched pairs (the assignment problem); top-1 and top-k have one each. To
    compare layers so is our choice: the papers compare indices.

    Args:
        counts: joint counts of at least one token.
        router_of_layer: one integer a layer, equal where layers share a router; it only groups the means.

    Raises:
        ValueError: no token was counted, or `router_of_layer` does not fit.
    """
    router_of_layer = check_router_of_layer(router_of_layer, counts.shape.num_layers)
    check_some_tokens(counts.num_tokens)
    num_tokens, num_picks = counts.num_tokens, counts.num_tokens * counts.shape.num_experts_per_tok
    agreement_P = [best_matching(joint_EE) / num_tokens for joint_EE in counts.top1_PEE]
    adjacent_AEE = counts.adjacent_top1()
    nulls = [
        [best_matching(table_AB) / num_tokens for table_AB in permuted_tables(joint_EE, seed)]
        for seed, joint_EE in enumerate(adjacent_AEE)
    ]
    is_adjacent = [second == first + 1 for first, second in counts.pairs]
    return LayerMatching(
        num_tokens=num_tokens,
        adjacent_agreement=tuple(share for share, near in zip(agreement_P, is_adjacent, strict=True) if near),
        adjacent_agreement_null_permuted=tuple(float(np.mean(null)) for null in nulls),
        adjacent_agreement_null_permuted_highest=tuple(max(null) for null in nulls),
        adjacent_agreement_null_loads=tuple(_expected_matching(joint_EE, num_tokens) for joint_EE in adjacent_AEE),
        num_permutations=len(nulls[0]),
        adjacent_shared=tuple(best_matching(joint_EE) / num_picks for joint_EE in counts.sets_AEE),
        adjacent_shared_null=tuple(_expected_matching(joint_EE, num_picks) for joint_EE in counts.sets_AEE),
        agreement=square(agreement_P, [1.0] * counts.shape.num_layers) if counts.has_all_pairs else None,
        agreement_means=layer_pair_means(agreement_P, counts.pairs, router_of_layer),
    )


def best_matching(joint_EE: NDArray[np.int64]) -> int:
    """Highest sum of counts that one-to-one pairs of rows and columns can have."""
    rows, columns = linear_sum_assignment(joint_EE, maximize=True)
    return int(joint_EE[rows, columns].sum())


def _expected_matching(joint_EE: NDArray[np.int64], num_picks: int) -> float:
    """Best matching of the product of two loads, which pairs them in order of size (rearrangement inequality)."""
    total = joint_EE.sum()
    first_E, second_E = (np.sort(joint_EE.sum(axis=axis)) / total for axis in (1, 0))
    return float(first_E @ second_E * total / num_picks)
