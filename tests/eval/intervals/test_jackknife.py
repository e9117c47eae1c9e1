"""Intervals against closed forms, and against how often they hold what they are of in samples drawn again and again."""

# Shapes: G groups, N tokens.

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap, t

from pathmoe_eval.intervals.jackknife import jackknife_interval


def interval(sums_G: NDArray[np.float64], sizes_G: NDArray[np.int64]) -> tuple[float, float]:
    without_G = (sums_G.sum() - sums_G) / (sizes_G.sum() - sizes_G)
    return jackknife_interval(float(sums_G.sum() / sizes_G.sum()), without_G, sizes_G, 0.95)


def test_a_mean_of_equally_large_groups_has_the_interval_of_a_mean() -> None:
    means_G = np.random.default_rng(0).normal(size=12)
    reach = t.ppf(0.975, 11) * means_G.std(ddof=1) / np.sqrt(12)
    assert interval(means_G * 7, np.full(12, 7)) == pytest.approx((means_G.mean() - reach, means_G.mean() + reach))


def test_a_ratio_has_the_spread_that_the_bootstrap_finds() -> None:
    rng = np.random.default_rng(1)
    sizes_G = rng.integers(20, 200, 60)
    sums_G = sizes_G * rng.normal(3, 0.5, 60)
    found = bootstrap(
        (sums_G, sizes_G), lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis), paired=True, vectorized=True,
        n_resamples=20_000, rng=0,
    )  # fmt: skip
    low, high = interval(sums_G, sizes_G)
    assert (high - low) / 2 / t.ppf(0.975, 59) == pytest.approx(found.standard_error, rel=0.05)


def test_what_only_the_number_of_tokens_decides_has_no_spread() -> None:
    sizes_G = np.array([10, 30, 20, 40])
    found = jackknife_interval(7.0, 7.0 - sizes_G / 100, sizes_G, 0.95)
    assert found == pytest.approx((7.0, 7.0))


@pytest.mark.parametrize("num_groups", [1, 2])
def test_too_few_groups_are_refused(num_groups: int) -> None:
    with pytest.raises(ValueError, match=rf"^groups \({num_groups}\) must be at least 3; pass more documents$"):
        jackknife_interval(1.0, np.ones(num_groups), np.ones(num_groups, dtype=np.int64), 0.95)


def _entropy(counts: NDArray[np.int64]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-np.sum(share * np.log2(share)))


def _distinct(counts: NDArray[np.int64]) -> float:
    return float(np.count_nonzero(counts))


@pytest.mark.parametrize("figure", [_entropy, _distinct])
def test_intervals_of_growing_figures_hold_the_mean_of_equally_large_samples(
    figure: Callable[[NDArray[np.int64]], float],
) -> None:
    """Half of a document's tokens are of a few paths of its own, and of 20,000 paths most are never seen."""
    rng = np.random.default_rng(2)
    share = 1 / np.arange(1, 20_001)
    edges = np.cumsum(share / share.sum())
    sizes_G = rng.geometric(1 / 120, 40)
    figures, intervals = [], []
    for _ in range(200):
        counts = np.zeros((40, 20_000), dtype=np.int64)
        for group, size in enumerate(sizes_G):
            drawn_N = np.searchsorted(edges, rng.random(size))
            own = np.searchsorted(edges, rng.random(size // 8 + 2))
            is_own_N = rng.random(size) < 0.5
            drawn_N[is_own_N] = own[rng.integers(len(own), size=int(is_own_N.sum()))]
            np.add.at(counts[group], drawn_N, 1)
        total = counts.sum(axis=0)
        figures.append(figure(total))
        without_G = np.array([figure(total - of_group) for of_group in counts])
        intervals.append(jackknife_interval(figures[-1], without_G, sizes_G, 0.95))
    mean = np.mean(figures)
    held = np.mean([low <= mean <= high for low, high in intervals])
    assert 0.9 <= held <= 0.99
