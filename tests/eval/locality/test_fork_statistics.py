"""Intervals and tests over forks: against the bootstrap of forks written out, all permutations, and planted data."""

# Shapes: P pairs, F forks, A aligned positions.

from itertools import combinations, product

import numpy as np
import pytest

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.locality.fork_statistics import difference_interval, fork_interval, permutation_test

SETTINGS = Bootstrap(num_resamples=400, seed=3, confidence=0.95)


def resampled(fork_P, statistic):
    """Ends of the interval of a function of the pairs of forks that were drawn, one resample after another."""
    forks = np.unique(fork_P)
    rng = np.random.default_rng(0)
    drawn = [
        statistic(np.concatenate([np.flatnonzero(fork_P == fork) for fork in rng.choice(forks, len(forks))]))
        for _ in range(4000)
    ]
    return np.quantile(drawn, [0.025, 0.975])


def sample(seed=0, num_forks=40):
    rng = np.random.default_rng(seed)
    fork_P = np.repeat(np.arange(num_forks), rng.integers(1, 6, num_forks))
    level_F = rng.random(num_forks)
    value_P = level_F[fork_P] + 0.1 * rng.random(len(fork_P))
    return fork_P, value_P, rng.integers(0, 4, len(fork_P)).astype(float)


def test_an_interval_is_of_whole_forks():
    fork_P, value_P, weight_P = sample()
    expected = resampled(fork_P, lambda rows: np.average(value_P[rows], weights=weight_P[rows]))
    settings = Bootstrap(num_resamples=4000, seed=3, confidence=0.95)
    found = fork_interval(value_P, weight_P, fork_P, settings)
    width = expected[1] - expected[0]
    assert found == pytest.approx(tuple(expected), abs=0.08 * width)
    # Pairs that do not depend on each other would have made it narrower.
    alone = fork_interval(value_P, weight_P, np.arange(len(fork_P)), settings)
    assert alone[1] - alone[0] < 0.8 * width


def test_an_interval_of_a_difference_takes_the_same_forks_of_both():
    fork_P, value_P, weight_P = sample()
    ones_P = np.ones_like(weight_P)
    found = difference_interval([value_P + 0.25, value_P], [ones_P, ones_P], fork_P, SETTINGS)
    assert found == pytest.approx((0.25, 0.25))
    expected = resampled(
        fork_P, lambda rows: np.average(value_P[rows], weights=weight_P[rows]) - np.mean(value_P[rows] ** 2)
    )
    found = difference_interval([value_P, value_P**2], [weight_P, ones_P], fork_P, SETTINGS)
    assert found == pytest.approx(tuple(expected), abs=0.2 * (expected[1] - expected[0]))


def test_pairs_without_weight_do_not_count():
    fork_P, value_P, weight_P = sample()
    has_P = weight_P > 0
    noisy_P = np.where(has_P, value_P, np.nan)
    alone = fork_interval(value_P[has_P], weight_P[has_P], fork_P[has_P], SETTINGS)
    assert fork_interval(noisy_P, weight_P, fork_P, SETTINGS) == alone
    whole = difference_interval([noisy_P, value_P], [weight_P, weight_P], fork_P, SETTINGS)
    assert whole == difference_interval([value_P, value_P], [weight_P, weight_P], fork_P, SETTINGS)


@pytest.mark.parametrize("num_forks", [0, 1])
def test_fewer_than_two_forks_have_no_interval(num_forks):
    values_P = np.ones(num_forks)
    fork_P = np.arange(num_forks)
    assert fork_interval(values_P, values_P, fork_P, SETTINGS) is None
    assert difference_interval([values_P, values_P], [values_P, values_P], fork_P, SETTINGS) is None


def test_a_kind_without_pairs_has_no_interval_of_its_difference():
    fork_P, value_P, weight_P = sample()
    assert difference_interval([value_P, value_P], [weight_P, 0 * weight_P], fork_P, SETTINGS) is None


def difference(value_A, is_first_A, fork_A):
    value_A = value_A - np.array([value_A[fork_A == fork].mean() for fork in fork_A])
    return value_A[is_first_A].mean() - value_A[~is_first_A].mean()


def test_the_p_value_is_that_of_all_permutations():
    rng = np.random.default_rng(4)
    fork_A = np.array([5, 8, 5, 5, 8, 5, 8, 5, 8])
    is_first_A = np.array([1, 0, 1, 0, 1, 1, 0, 0, 1], dtype=bool)
    value_A = rng.random(9) + 0.1 * is_first_A
    observed = difference(value_A, is_first_A, fork_A)
    forks = [np.flatnonzero(fork_A == fork).tolist() for fork in (5, 8)]
    choices = [combinations(fork, int(is_first_A[fork].sum())) for fork in forks]
    every = [
        abs(difference(value_A, np.isin(np.arange(9), sum(chosen, ())), fork_A)) >= abs(observed) - 1e-9
        for chosen in product(*choices)
    ]
    found = permutation_test(value_A, is_first_A, fork_A, num_permutations=4000, seed=0)
    assert found.difference == pytest.approx(observed)
    assert len(every) == 60
    assert 0.05 < np.mean(every) < 0.95
    assert found.p_value == pytest.approx(np.mean(every), abs=0.03)


def test_a_planted_difference_has_the_least_p_value_and_none_has_one():
    rng = np.random.default_rng(0)
    fork_A, is_first_A = np.repeat(np.arange(6), 20), rng.random(120) < 0.5
    planted = permutation_test(is_first_A * 0.5 + fork_A, is_first_A, fork_A, num_permutations=99, seed=1)
    assert planted.p_value == 0.01
    constant = permutation_test(np.full(120, 0.3) + fork_A, is_first_A, fork_A, num_permutations=99, seed=1)
    assert constant.difference == pytest.approx(0)
    assert constant.p_value == 1
    assert (constant.num_permutations, constant.seed) == (99, 1)


def test_forks_that_differ_do_not_make_their_kinds_differ():
    # One fork has high values and labels of the first kind, the other low ones and those of the second.
    fork_A = np.repeat([4, 2], 80)
    rng = np.random.default_rng(1)
    value_A = (fork_A == 4) + 0.01 * rng.random(160)
    is_first_A = rng.random(160) < np.where(fork_A == 4, 0.9, 0.1)
    across = permutation_test(value_A, is_first_A, np.zeros(160, dtype=int), num_permutations=199, seed=0)
    assert across.p_value == 1 / 200
    assert permutation_test(value_A, is_first_A, fork_A, num_permutations=199, seed=0).p_value > 0.05


def test_p_values_of_chance_are_uniform():
    fork_A = np.arange(36) % 3
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        value_A = rng.random(36) + fork_A
        test = permutation_test(value_A, rng.random(36) < 0.4, fork_A, num_permutations=19, seed=seed + 1000)
        found.append(test.p_value)
    assert np.mean(np.array(found) <= 0.25) == pytest.approx(0.25, abs=0.1)
    assert np.mean(found) == pytest.approx(0.525, abs=0.07)


def test_one_kind_alone_is_not_tested():
    args = np.ones(3), np.ones(3, dtype=bool), np.zeros(3, dtype=int)
    assert permutation_test(*args, num_permutations=9, seed=0) is None
    none = np.empty(0), np.empty(0, dtype=bool), np.empty(0, dtype=int)
    assert permutation_test(*none, num_permutations=9, seed=0) is None


def test_no_permutations_are_refused():
    with pytest.raises(ValueError, match=r"^num_permutations \(0\) must be at least 1; "):
        permutation_test(np.ones(2), np.array([True, False]), np.zeros(2, dtype=int), num_permutations=0, seed=0)
