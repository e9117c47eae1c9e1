"""Estimates from heavy and sampled paths: exact if all are sampled; mean and spread over samples as stated."""

# Shapes: P paths.

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.paths.coverage import coverage, rank_frequency
from pathmoe_eval.paths.entropy import plug_in_bits
from pathmoe_eval.paths.sketch_estimates import estimate

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def frequencies(counts):
    return np.unique(np.asarray(counts, dtype=np.int64), return_counts=True)


def estimated(heavy, sampled, num_tokens, probability, num_missed=0):
    return estimate(
        num_tokens=num_tokens,
        heavy_counts_P=np.array(heavy, dtype=np.int64),
        num_missed=num_missed,
        sampled_counts_P=np.array(sampled, dtype=np.int64),
        sampling_probability=probability,
    )


@given(COUNTS, st.data())
def test_with_every_path_sampled_all_is_exact(counts, data):
    cut = data.draw(st.integers(0, len(counts)))
    result = estimated(counts[:cut], counts[cut:], sum(counts), 1.0)
    exact = coverage(*frequencies(counts))
    assert (result.num_paths, result.num_paths_standard_error) == (len(counts), 0)
    assert result.entropy_bits == pytest.approx(plug_in_bits(*frequencies(counts)), abs=1e-12)
    assert (result.top_paths, result.share) == (exact.top_paths, pytest.approx(exact.share, rel=1e-12))
    assert {result.entropy_standard_error_bits, *result.share_standard_error} == {0}
    assert result.rank_frequency == rank_frequency(*frequencies(counts))
    assert (result.num_heavy, result.num_sampled, result.missed_share) == (cut, len(counts) - cut, 0)


def test_over_random_samples_errors_are_as_stated():
    rng = np.random.default_rng(0)
    counts = np.maximum(1, 3000 / np.arange(1, 20_001) ** 0.8).astype(np.int64)
    heavy, rest = counts[:100], counts[100:]
    sizes, multiplicity = frequencies(counts)
    truth = np.array([len(counts), plug_in_bits(sizes, multiplicity), *coverage(sizes, multiplicity).share])
    runs, errors = [], []
    for _ in range(300):
        r = estimated(heavy, rest[rng.random(len(rest)) < 0.1], int(counts.sum()), 0.1)
        runs.append([r.num_paths, r.entropy_bits, *r.share])
        errors.append([r.num_paths_standard_error, r.entropy_standard_error_bits, *r.share_standard_error])
    spread, stated = np.std(runs, axis=0), np.mean(errors, axis=0)
    assert stated[2:5] == pytest.approx([0, 0, 0])  # the first 100 paths are heavy
    sampled = spread > 1e-12
    assert sampled.tolist() == [True, True, False, False, False, True, True, True]
    assert stated[sampled] == pytest.approx(spread[sampled], rel=0.15)
    bias = np.abs(np.mean(runs, axis=0) - truth)
    assert np.all(bias <= 4 * spread / math.sqrt(300) + 1e-12)


def test_distinct_paths_are_unbiased_over_all_samples():
    rest = [1, 2, 3, 4]
    mean = variance = 0.0
    for chosen in itertools.product([False, True], repeat=4):
        sample = list(itertools.compress(rest, chosen))
        result = estimated([9, 9], sample, 28, 0.5)
        mean += result.num_paths / 16
        variance += result.num_paths_standard_error**2 / 16
    assert mean == 2 + 4
    assert variance == 4 * (1 - 0.5) / 0.5


def test_what_heavy_paths_may_lack_is_stated():
    assert estimated([5, 5], [1], 20, 0.5, num_missed=4).missed_share == 0.2


def test_no_sampled_path_leaves_the_heavy_ones():
    result = estimated([8, 8], [], 16, 0.25)
    assert (result.num_paths, result.entropy_bits, result.share) == (2, 1.0, (0.5,))
