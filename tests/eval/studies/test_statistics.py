"""Statistics of pairs, against scipy, closed forms, enumeration and simulation."""

# Shapes: S seeds, M documents, N simulated studies.

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pathmoe_eval.studies.statistics import (
    detectable_difference,
    hedges_d_z,
    holm,
    paired_difference,
    seeds_and_documents_interval,
    t_interval,
)

FIGURES = st.floats(-10, 10).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(FIGURES, FIGURES), min_size=2, max_size=8))
def test_pairs_are_tested_as_scipy_tests_them(pairs: list[tuple[float, float]]) -> None:
    variant, baseline = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    found = paired_difference(variant, baseline)
    differences = [a - b for a, b in pairs]
    assert found is not None and found.num_seeds == len(pairs)
    assert found.mean == pytest.approx(np.mean(differences), abs=1e-12)
    assert found.deviation == pytest.approx(np.std(differences, ddof=1), abs=1e-12)
    if np.ptp(differences) < 1e-9:
        assert found.p_value is None and found.effect_size is None and found.detectable is None
        return
    expected = stats.ttest_rel(*zip(*pairs, strict=True))
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    ends = expected.confidence_interval(0.95)
    assert found.t_interval == pytest.approx((ends.low, ends.high), rel=1e-6, abs=1e-9)
    assert (found.effect_size is None) == (len(pairs) < 3)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 9.0}, {1: 1.5, 0: 0.25, 7: 3.0})
    assert found is not None and (found.num_seeds, found.mean) == (2, 0.625)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_a_difference_and_nothing_else() -> None:
    found = paired_difference({3: 1.0}, {3: 0.5})
    assert found is not None and found.mean == 0.5
    assert {found.deviation, found.t_interval, found.bootstrap_interval, found.p_value, found.detectable} == {None}
    assert t_interval([1.0]) is None


def test_the_bootstrap_of_three_seeds_is_that_of_all_27_resamples() -> None:
    values = {0: 0.1, 1: 0.5, 2: 0.7}
    means = sorted(np.mean(draw) for draw in itertools.product(values.values(), repeat=3))
    found = paired_difference(values, dict.fromkeys(values, 0.0))
    # One resample in 27 is all of the lowest, one all of the highest: more than the 2.5% that the interval leaves out.
    assert found is not None and found.bootstrap_interval == pytest.approx((means[0], means[-1]))


def test_the_effect_size_is_unbiased_in_few_pairs() -> None:
    rng, true = np.random.default_rng(0), 0.8
    samples_NS = rng.normal(true, 1.0, (20_000, 5))
    corrected = np.mean([hedges_d_z(values_S) for values_S in samples_NS])
    plain = np.mean(samples_NS.mean(axis=1) / samples_NS.std(axis=1, ddof=1))
    assert corrected == pytest.approx(true, abs=0.02)
    assert plain > true + 0.15, "what is corrected for"


@pytest.mark.parametrize("num_seeds", [3, 5, 12])
def test_a_detectable_difference_is_found_as_often_as_it_says(num_seeds: int) -> None:
    difference = detectable_difference(0.3, num_seeds)
    samples_NS = np.random.default_rng(1).normal(difference, 0.3, (40_000, num_seeds))
    power = np.mean(stats.ttest_1samp(samples_NS, 0.0, axis=1).pvalue < 0.05)
    assert power == pytest.approx(0.8, abs=0.01)


def test_a_detectable_difference_of_many_seeds_is_that_of_the_normal_distribution() -> None:
    quantiles = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert detectable_difference(2.0, 10_000) == pytest.approx(2.0 * quantiles / math.sqrt(10_000), rel=1e-3)
    assert detectable_difference(0.02, 2) / 0.02 == pytest.approx(detectable_difference(5.0, 2) / 5.0)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    places = range(len(p_values))
    subsets = [subset for size in range(1, len(p_values) + 1) for subset in itertools.combinations(places, size)]
    closed = [
        max(min(1.0, len(subset) * min(p_values[other] for other in subset)) for subset in subsets if place in subset)
        for place in places
    ]
    assert holm(p_values, len(p_values)) == pytest.approx(closed)


def test_holm_counts_tests_that_were_not_made_as_not_significant() -> None:
    assert holm([0.01, None, 0.04], 3) == [0.03, None, 0.08]
    assert holm([0.01, 1.0, 0.04], 3)[::2] == [0.03, 0.08]
    assert holm([None], 1) == [None]


def test_documents_and_seeds_both_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    of_seed_S, of_document_M = rng.normal(0, 1, 40), rng.normal(0, 2, 60)
    low, high = seeds_and_documents_interval(of_seed_S[:, None] + of_document_M, np.ones(60)) or (0.0, 0.0)
    # Of independent parts variances add up; a mean's is the population's over the number.
    deviation = math.sqrt(of_seed_S.var() / 40 + of_document_M.var() / 60)
    assert (high - low) / (2 * stats.norm.ppf(0.975)) == pytest.approx(deviation, rel=0.05)
    assert (low + high) / 2 == pytest.approx(of_seed_S.mean() + of_document_M.mean(), abs=0.05)


def test_a_difference_that_is_everywhere_the_same_has_no_interval_around_it() -> None:
    size_M = np.array([10.0, 20.0, 400.0])
    ends = seeds_and_documents_interval(np.tile(0.25 * size_M, (4, 1)), size_M)
    assert ends == pytest.approx((0.25, 0.25))
    assert seeds_and_documents_interval(np.ones((1, 3)), size_M) is None
    assert seeds_and_documents_interval(np.ones((3, 1)), size_M[:1]) is None


def test_the_same_seed_gives_the_same_bits() -> None:
    difference_SM = np.random.default_rng(3).normal(size=(3, 7))
    first, second = (seeds_and_documents_interval(difference_SM, np.ones(7), num_resamples=200) for _ in range(2))
    assert first == second
