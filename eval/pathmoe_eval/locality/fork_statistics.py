"""Intervals and tests of figures over pairs of completions, with forks as what was drawn, not tokens."""

# Shapes: P pairs of completions, F forks, A aligned positions.

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning

from pathmoe_eval.bootstrap import Bootstrap


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """A difference within forks between two kinds of positions, against labels thrown anew within each fork.

    Neighbouring positions are alike and a permutation makes them independent, so that p-values are too small where
    differences are; the interval over forks of a difference does not have this fault.
    """

    difference: float
    """Values minus the mean of their fork: their mean over positions of the first kind minus that of the second."""
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        return settings.interval(columns, _difference)


def permutation_test(
    value_A: NDArray[np.float64],
    is_first_A: NDArray[np.bool_],
    fork_A: NDArray[np.int64],
    *,
    num_permutations: int,
    seed: int,
) -> PermutationTest | None:
    """Whether positions of two kinds differ within forks: labels are permuted over the positions of each fork.

    Forks that are unlike each other, and have more of the one kind or the other, make no difference: values count from
    the mean of their fork. The p-value counts the labels as they are among the permutations (Phipson and Smyth,
    Permutation P-values should never be zero, 2010), so that it is never 0.

    Args:
        value_A: float64 [aligned].
        is_first_A: bool [aligned], which kind each is of.
        fork_A: the fork of each.
        num_permutations: at least 1.
        seed: of the permutations.

    Returns:
        None where one kind has no position.

    Raises:
        ValueError: no permutations.
    """
    if num_permutations < 1:
        raise ValueError(f"num_permutations ({num_permutations}) must be at least 1; raise it")
    if is_first_A.all() or not is_first_A.any():
        return None
    order_A = np.argsort(fork_A, kind="stable")
    _, starts_F, fork_A, size_F = np.unique(fork_A[order_A], return_index=True, return_inverse=True, return_counts=True)
    value_A, label_A = value_A[order_A], is_first_A[order_A].astype(np.float64)
    value_A = value_A - (np.bincount(fork_A, weights=value_A) / size_F)[fork_A]
    # The values add up to 0, so that the sum of the one kind is minus that of the other.
    scale = 1 / label_A.sum() + 1 / (len(label_A) - label_A.sum())
    observed = float(label_A @ value_A) * scale
    forks = np.split(label_A, starts_F[1:])  # views, which shuffling changes in place
    mixed = [of_fork_A for of_fork_A in forks if of_fork_A.min() < of_fork_A.max()]
    rng = np.random.default_rng(seed)
    # Equal sums in another order may differ in the last bits.
    least, num_as_large = abs(observed) - 1e-12, 0
    for _ in range(num_permutations):
        for of_fork_A in mixed:
            rng.shuffle(of_fork_A)
        num_as_large += abs(float(label_A @ value_A) * scale) >= least
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
