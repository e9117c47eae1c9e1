"""How alike routing is at aligned positions with the same token and with different ones, beside chance."""

# Shapes: L MoE layers, A aligned positions, P pairs of completions.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.layers.layer_overlap import jaccard_null_uniform, jaccard_null_uniform_ratio
from pathmoe_eval.locality.alignment import Alignment
from pathmoe_eval.locality.fork_statistics import PermutationTest, difference_interval, permutation_test
from pathmoe_eval.locality.node_overlap import NodeOverlap
from pathmoe_eval.locality.pairs import CompletionPairs
from pathmoe_eval.locality.position_overlap import KindOfPosition, Overlap, position_overlap
from pathmoe_eval.locality.token_matches import draw_matches

_POSITIONS_AT_A_TIME = 1 << 15


@dataclass(frozen=True, kw_only=True)
class TokenIdentity:
    """Routing at positions with the same token apart from that at positions with different ones."""

    alignment: str
    """How positions were aligned: "position", "diff" or "lines"."""
    relation: str
    """Which pairs: see `CompletionPairs`."""
    grouping: str
    """Which pairs: see `CompletionPairs`."""
    num_pairs: int
    """Pairs that were aligned."""
    num_pairs_available: int
    """Pairs of this kind in the tree."""
    num_forks: int
    """Forks at which the pairs part."""
    num_without_routing: int
    """Aligned positions that were left out since a token was never fed to the model."""
    seed: int
    """Of the draw of pairs."""
    seed_of_matches: int
    """Of the draw of other occurrences."""
    num_resamples: int
    """Of the bootstraps over forks."""
    seed_of_resamples: int
    """Of the bootstraps."""
    confidence: float
    """Of the intervals."""
    jaccard_null_uniform: float
    """Exact mean for independent uniform sets: hypergeometric."""
    jaccard_null_uniform_ratio: float
    """Ratio of means for independent uniform sets, k / (2E - k): the baseline that papers print."""
    same_token: Overlap
    """Positions whose tokens have the same id."""
    different_token: Overlap
    """Positions whose tokens have not."""
    difference: float | None
    """`same_token.jaccard` - `different_token.jaccard`."""
    difference_interval: tuple[float, float] | None
    """Of the draw of forks."""
    permutation: PermutationTest | None
    """Whether the two kinds differ, by labels permuted within forks."""


def token_identity(
    tree: GenerationTree,
    pairs: CompletionPairs,
    alignment: Alignment,
    *,
    distance_starts: Sequence[int],
    seed: int,
    num_permutations: int,
    settings: Bootstrap,
) -> TokenIdentity:
    """Decompose the overlap of routing at aligned positions by whether their tokens are the same.

    Args:
        tree: the tree.
        pairs: pairs of its completions.
        alignment: of these pairs.
        distance_starts: the first distance of each bin, ascending from 1; the last bin has no end.
        seed: of the other occurrences, and of the permutations.
        num_permutations: at least 1.
        settings: of the bootstrap over forks.

    Raises:
        ValueError: distances that do not ascend from 1, or no permutations.
    """
    starts = list(distance_starts)
    if starts[:1] != [1] or starts != sorted(set(starts)):
        raise ValueError(f"distance_starts ({starts}) must ascend from 1; change them")
    overlap = NodeOverlap(tree)
    is_same_A = tree.token_ids_N[alignment.first_A] == tree.token_ids_N[alignment.second_A]
    matched_A = draw_matches(tree, alignment.first_A, alignment.second_A, seed)
    found_LA = _jaccard(overlap, alignment.first_A, alignment.second_A)
    has_match_A = matched_A >= 0
    null_LA = np.zeros_like(found_LA)
    null_LA[:, has_match_A] = _jaccard(overlap, alignment.first_A[has_match_A], matched_A[has_match_A])
    kinds = [
        KindOfPosition(found_LA, null_LA, has_match_A, alignment, pairs.fork_P, which_A)
        for which_A in (is_same_A, ~is_same_A)
    ]
    nulls = (
        jaccard_null_uniform(tree.num_experts, tree.num_experts_per_tok),
        jaccard_null_uniform_ratio(tree.num_experts, tree.num_experts_per_tok),
    )
    same, different = (position_overlap(kind, starts, nulls, settings) for kind in kinds)
    values, weights = zip(*(kind.of_pairs(kind.found_LA) for kind in kinds), strict=True)
    return TokenIdentity(
        alignment=alignment.method,
        relation=pairs.relation,
        grouping=pairs.grouping,
        num_pairs=len(pairs.fork_P),
        num_pairs_available=pairs.num_available,
        num_forks=len(np.unique(pairs.fork_P)),
        num_without_routing=alignment.num_without_routing,
        seed=pairs.seed,
        seed_of_matches=seed,
        num_resamples=settings.num_resamples,
        seed_of_resamples=settings.seed,
        confidence=settings.confidence,
        jaccard_null_uniform=nulls[0],
        jaccard_null_uniform_ratio=nulls[1],
        same_token=same,
        different_token=different,
        difference=(
            None if same.jaccard is None or different.jaccard is None else same.jaccard - different.jaccard
        ),
        difference_interval=difference_interval(
            [value_LP.mean(axis=0) for value_LP in values], weights, pairs.fork_P, settings
        ),
        permutation=permutation_test(
            found_LA.mean(axis=0), is_same_A, pairs.fork_P[alignment.pair_A],
            num_permutations=num_permutations, seed=seed,
        ),
    )  # fmt: skip


def _jaccard(overlap: NodeOverlap, first_A: NDArray[np.int64], second_A: NDArray[np.int64]) -> NDArray[np.float64]:
    """`NodeOverlap.jaccard`, some positions at a time: their masks take more memory than what is made of them."""
    cuts = range(_POSITIONS_AT_A_TIME, len(first_A), _POSITIONS_AT_A_TIME)
    parts = zip(np.split(first_A, cuts), np.split(second_A, cuts), strict=True)
    return np.concatenate([overlap.jaccard(*part) for part in parts], axis=1)
