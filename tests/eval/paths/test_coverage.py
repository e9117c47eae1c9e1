"""Coverage, its null and the Zipf plot against sorted lists of counts and enumerated paths."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.paths.coverage import coverage, independent_top_shares, rank_frequency, tokens_on_top

COUNTS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def frequencies(counts):
    return np.unique(np.asarray(counts, dtype=np.int64), return_counts=True)


def needed(descending, percent):
    """Take paths, most frequent first, until they carry the percentage."""
    tokens = paths = 0
    while tokens * 100 < percent * sum(descending):
        tokens += descending[paths]
        paths += 1
    return paths


@given(COUNTS)
def test_coverage_equals_brute_force(counts):
    descending = sorted(counts, reverse=True)
    result = coverage(*frequencies(counts))
    assert result.num_tokens == sum(counts)
    assert result.top_paths == tuple(k for k in (1, 10, 100) if k <= len(counts))
    assert result.share == tuple(sum(descending[:k]) / sum(counts) for k in result.top_paths)
    assert result.share_null is None
    assert result.percent == (50, 90, 99)
    assert result.paths_needed == tuple(needed(descending, percent) for percent in result.percent)


@given(COUNTS, st.integers(2, 5))
def test_duplicating_the_data_changes_no_share(counts, times):
    once, often = coverage(*frequencies(counts)), coverage(*frequencies(np.array(counts) * times))
    assert often.share == pytest.approx(once.share, rel=1e-15)
    assert often.paths_needed == once.paths_needed


@given(COUNTS)
def test_tokens_on_every_number_of_paths(counts):
    descending = sorted(counts, reverse=True)
    top = list(range(1, len(counts) + 1))
    assert tokens_on_top(*frequencies(counts), top) == list(itertools.accumulate(descending))


def test_uniform_paths_are_covered_in_proportion():
    result = coverage(*frequencies([7] * 1000))
    assert result.share == (0.001, 0.01, 0.1, 0.5, 1.0)
    assert result.paths_needed == (500, 900, 990)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any), min_size=1, max_size=5))
def test_the_null_equals_all_paths_enumerated(loads):
    layer_shares = [np.array(load) / sum(load) for load in loads]
    likeliest = sorted((math.prod(path) for path in itertools.product(*layer_shares)), reverse=True)
    top = list(range(1, len(likeliest) + 3))
    expected = [math.fsum(likeliest[:k]) for k in top]
    assert independent_top_shares(layer_shares, top) == pytest.approx(expected, rel=1e-12)
    assert independent_top_shares(layer_shares, top[:2]) == pytest.approx(expected[:2], rel=1e-12)


def test_the_null_of_balanced_layers_is_the_share_of_all_paths():
    result = coverage(*frequencies([3] * 1000), [np.full(16, 1 / 16)] * 24)
    assert result.share_null == pytest.approx([k / 16**24 for k in result.top_paths], rel=1e-9)


@given(COUNTS)
def test_the_zipf_plot_equals_brute_force(counts):
    descending = sorted(counts, reverse=True)
    result = rank_frequency(*frequencies(counts))
    assert result.count == tuple(descending[rank - 1] for rank in result.rank)
    assert (result.rank[0], result.rank[-1]) == (1, len(counts))
    assert all(a < b for a, b in itertools.pairwise(result.rank))
    assert result.slope_last_rank == sum(c >= 10 for c in counts)
    fitted = [(r, c) for r, c in zip(result.rank, result.count, strict=True) if 10 <= r <= result.slope_last_rank]
    if len(fitted) < 2:
        assert result.slope is None
    else:
        assert result.slope == pytest.approx(np.polyfit(*np.log(fitted).T, 1)[0], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3])
def test_the_slope_of_a_power_law_is_its_exponent(exponent):
    counts = np.rint(1e7 * np.arange(1.0, 20_001) ** -exponent).astype(np.int64)
    assert rank_frequency(*frequencies(counts)).slope == pytest.approx(-exponent, abs=0.01)


def test_points_are_few_and_evenly_spaced_in_the_logarithm():
    result = rank_frequency(*frequencies([1] * 100_000))
    assert len(result.rank) <= 51
    assert set(result.rank) >= {1, 10, 100, 1000, 10_000, 100_000}
    assert result.slope is None
