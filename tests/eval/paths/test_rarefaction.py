"""Rarefaction against every subsample, against a sum in exact arithmetic, and its closed forms."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.paths.rarefaction import powers_of_two, rarefaction


def frequencies(counts):
    sizes, multiplicity = np.unique(np.asarray(counts, dtype=np.int64), return_counts=True)
    return sizes, multiplicity


def entropy(counts):
    n = sum(counts)
    return math.fsum(c / n * math.log2(n / c) for c in counts)


def exact(counts, n):
    """Expected distinct paths and entropy, with the probabilities as ratios of integers."""
    total = sum(counts)
    num_paths, bits = Fraction(0), []
    for c, times in Counter(counts).items():
        for x in range(1, min(c, n) + 1):
            p = Fraction(math.comb(c, x) * math.comb(total - c, n - x), math.comb(total, n))
            num_paths += times * p
            bits.append(times * float(p) * x / n * math.log2(n / x))
    return float(num_paths), math.fsum(bits)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_equals_the_mean_over_all_subsamples(counts):
    tokens = [path for path, count in enumerate(counts) for _ in range(count)]
    sizes = range(1, len(tokens) + 1)
    result = rarefaction(*frequencies(counts), list(sizes))
    for n, num_paths, bits in zip(sizes, result.num_paths, result.entropy_bits, strict=True):
        samples = [list(Counter(sample).values()) for sample in combinations(tokens, n)]
        assert num_paths == pytest.approx(sum(map(len, samples)) / len(samples), rel=1e-12)
        assert bits == pytest.approx(sum(map(entropy, samples)) / len(samples), rel=1e-12, abs=1e-12)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.data())
def test_equals_exact_arithmetic(counts, data):
    n = data.draw(st.integers(1, sum(counts)))
    result = rarefaction(*frequencies(counts), [n])
    num_paths, bits = exact(counts, n)
    assert result.num_paths[0] == pytest.approx(num_paths, rel=1e-12)
    assert result.entropy_bits[0] == pytest.approx(bits, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("n", [64, 700, 1200, 1499])
def test_equals_exact_arithmetic_where_counts_are_heavy(n):
    # standard deviations on both sides of where the sums start to skip values
    counts = [500, 300, 200, 150, 100, 50, 20, 20, 20, *[4] * 10, *[1] * 100]
    assert sum(counts) == 1500
    result = rarefaction(*frequencies(counts), [n])
    num_paths, bits = exact(counts, n)
    assert result.num_paths[0] == pytest.approx(num_paths, rel=1e-12)
    assert result.entropy_bits[0] == pytest.approx(bits, abs=1e-11)


def test_the_last_point_is_the_sample_and_the_curves_rise():
    counts = np.random.default_rng(0).zipf(1.5, 3000).clip(max=10_000)
    result = rarefaction(*frequencies(counts))
    assert result.num_tokens[-1] == counts.sum()
    assert result.num_paths[-1] == pytest.approx(3000, rel=1e-12)
    assert result.entropy_bits[-1] == pytest.approx(entropy(counts.tolist()), rel=1e-12)
    assert (result.num_paths[0], result.entropy_bits[0]) == (pytest.approx(1, rel=1e-12), 0.0)
    assert result.share_of_ceiling[0] is None
    assert all(np.diff(result.num_paths) > 0)
    assert all(np.diff(result.entropy_bits) > 0)
    assert all(0 < share <= 1 for share in result.share_of_ceiling[1:])
    assert result.ceiling_bits == tuple(math.log2(n) for n in result.num_tokens)


def test_all_different_stays_at_the_ceiling():
    result = rarefaction(*frequencies([1] * 1000))
    assert result.num_paths == pytest.approx(result.num_tokens, rel=1e-12)
    assert result.entropy_bits == result.ceiling_bits


def test_one_path_has_no_entropy_at_any_size():
    result = rarefaction(*frequencies([1000]))
    assert result.num_paths == pytest.approx([1] * len(result.num_tokens), rel=1e-12)
    assert result.entropy_bits == pytest.approx([0] * len(result.num_tokens), abs=1e-12)


def test_millions_of_tokens_agree_with_drawn_subsamples():
    rng = np.random.default_rng(1)
    counts = np.maximum(1, (2e5 / np.arange(1, 100_001)).astype(np.int64))
    result = rarefaction(*frequencies(counts), [1 << 16])
    drawn = [np.asarray(rng.multivariate_hypergeometric(counts, 1 << 16, method="marginals")) for _ in range(20)]
    num_paths = [np.count_nonzero(d) for d in drawn]
    bits = [float(np.sum(d[d > 0] / (1 << 16) * np.log2((1 << 16) / d[d > 0]))) for d in drawn]
    for samples, expected in [(num_paths, result.num_paths[0]), (bits, result.entropy_bits[0])]:
        assert abs(np.mean(samples) - expected) < 4 * np.std(samples, ddof=1) / math.sqrt(20)


@pytest.mark.parametrize(("total", "grid"), [(1, (1,)), (8, (1, 2, 4, 8)), (9, (1, 2, 4, 8, 9))])
def test_the_grid_ends_with_the_sample(total, grid):
    assert powers_of_two(total) == grid


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([0, 2], r"num_tokens \(0\) must be between 1 and the 5 tokens"),
        ([2, 6], r"num_tokens \(6\) must be between 1 and the 5 tokens"),
        ([2, 1], r"num_tokens \(\[2, 1\]\) must ascend"),
        ([], r"num_tokens \(\[\]\) must ascend"),
    ],
)
def test_bad_input_is_named_in_one_line(grid, message):
    with pytest.raises(ValueError, match=message) as error:
        rarefaction(*frequencies([2, 3]), grid)
    assert "\n" not in str(error.value)
