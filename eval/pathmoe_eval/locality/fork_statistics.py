"""Intervals and tests of figures over pairs of completions, with forks as what was drawn, not tokens."""

# Shapes: P pairs of completions, F forks, A aligned positions.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.bootstrap import Bootstrap


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """A difference of means between two kinds of positions, against labels thrown anew within each fork.

    Neighbouring positions are alike and a permutation makes them independent, so that p-values are too small where
    differences are; the interval of the difference over forks beside it does not have this fault.
    """

    difference: float
    """Mean of the first kind minus that of the second."""
    p_value: float
    """(1 + permutations with at least the same absolute difference) / (1 + permutations)."""
    num_permutations: int
    """Permutations drawn."""
    seed: int
    """Of the draw."""


def fork_interval(
    value_P: NDArray[np.float64], weight_P: NDArray[np.float64], fork_P: NDArray[np.int64], settings: Bootstrap
) -> tuple[float, float] | None:
    """Bootstrap interval, over forks, of the weighted mean of values of pairs.

    Pairs of one fork have tokens in common, so that whole forks are drawn, with all their pairs. With few forks, below
    about twenty, it is too narrow.

    Args:
        value_P: one value a pair; of no meaning at weight 0.
        weight_P: such as 1 for each pair, or its number of positions.
        fork_P: the fork of each pair.
        settings: of the bootstrap.

    Returns:
        None with fewer than two forks.
    """
    has_P = weight_P > 0
    _, fork_P = np.unique(fork_P[has_P], return_inverse=True)
    weight_F = np.bincount(fork_P, weights=weight_P[has_P])
    sum_F = np.bincount(fork_P, weights=value_P[has_P] * weight_P[has_P])
    return settings.interval([sum_F, weight_F], _mean)


def difference_interval(
    values: Sequence[NDArray[np.float64]],
    weights: Sequence[NDArray[np.float64]],
    fork_P: NDArray[np.int64],
    settings: Bootstrap,
) -> tuple[float, float] | None:
    """The same of the weighted mean of the first of two values minus the second's; a resample takes the same forks of
    both. None, too, where a resample has no pair of one of them."""
    has_P = (weights[0] > 0) | (weights[1] > 0)
    _, fork_P = np.unique(fork_P[has_P], return_inverse=True)
    columns = []
    for value_P, weight_P in zip(values, weights, strict=True):
        known_P = np.where(weight_P > 0, value_P, 0.0)[has_P]
        columns += [
            np.bincount(fork_P, weights=known_P * weight_P[has_P]),
            np.bincount(fork_P, weights=weight_P[has_P]),
        ]
    return settings.interval(columns, _difference)


def permutation_test(
    value_A: NDArray[np.float64],
    is_first_A: NDArray[np.bool_],
    pair_A: NDArray[np.int64],
    fork_P: NDArray[np.int64],
    *,
    num_permutations: int,
    seed: int,
) -> PermutationTest | None:
    """Whether positions of two kinds differ: labels are permuted over the positions of each fork.

    Means are over the positions of a pair, then over pairs. The p-value counts the labels as they are among the
    permutations (Phipson and Smyth, Permutation P-values should never be zero, 2010), so that it is never 0.

    Args:
        value_A: float64 [aligned].
        is_first_A: bool [aligned], which kind each is of.
        pair_A: the pair of each, ascending, and pairs in the order of their forks.
        fork_P: the fork of each pair, ascending.
        num_permutations: at least 1.
        seed: of the permutations.

    Returns:
        None where one kind has no position.

    Raises:
        ValueError: no permutations, or pairs that are not in the order of their forks.
    """
    if num_permutations < 1:
        raise ValueError(f"num_permutations ({num_permutations}) must be at least 1; raise it")
    fork_A = fork_P[pair_A]
    if (np.diff(fork_A) < 0).any():
        raise ValueError(f"fork ({int(fork_A[np.diff(fork_A).argmin() + 1])}) must not descend; sort pairs by forks")
    if is_first_A.all() or not is_first_A.any():
        return None
    num_pairs = len(fork_P)
    counts_P = np.bincount(pair_A, minlength=num_pairs)
    sums_P = np.bincount(pair_A, weights=value_A, minlength=num_pairs)

    def difference(label_A: NDArray[np.float64]) -> float:
        count_P = np.bincount(pair_A, weights=label_A, minlength=num_pairs)
        sum_P = np.bincount(pair_A, weights=label_A * value_A, minlength=num_pairs)
        has_first_P, has_second_P = count_P > 0, count_P < counts_P
        rest_P = (sums_P - sum_P)[has_second_P] / (counts_P - count_P)[has_second_P]
        return float((sum_P[has_first_P] / count_P[has_first_P]).mean() - rest_P.mean())

    label_A = is_first_A.astype(np.float64)
    observed = difference(label_A)
    forks = np.split(label_A, np.flatnonzero(np.diff(fork_A)) + 1)  # views, which shuffling changes in place
    rng = np.random.default_rng(seed)
    # Equal sums in another order may differ in the last bits.
    least, num_as_large = abs(observed) * (1 - 1e-9) - 1e-12, 0
    for _ in range(num_permutations):
        for of_fork_A in forks:
            rng.shuffle(of_fork_A)
        num_as_large += abs(difference(label_A)) >= least
    return PermutationTest(
        difference=observed,
        p_value=(1 + num_as_large) / (1 + num_permutations),
        num_permutations=num_permutations,
        seed=seed,
    )


def _mean(sum_F: NDArray[np.float64], weight_F: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = sum_F.sum(axis=axis) / weight_F.sum(axis=axis)
    return mean


def _difference(
    sum_F: NDArray[np.float64],
    weight_F: NDArray[np.float64],
    other_sum_F: NDArray[np.float64],
    other_weight_F: NDArray[np.float64],
    axis: int,
) -> NDArray[np.float64]:
    return _mean(sum_F, weight_F, axis) - _mean(other_sum_F, other_weight_F, axis)
