"""Statistics of runs that are paired by seed: intervals, effect size, tests, and what so few seeds can show."""

# Shapes: S seeds, M documents, R resamples.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
NUM_RESAMPLES = 10_000

Ends = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How a variant differs from the baseline, seed by seed."""

    num_seeds: int
    mean: float
    """Of the differences, the variant's figure less the baseline's."""
    deviation: float | None
    """Standard deviation of the differences, with n - 1; None for one seed."""
    t_interval: Ends | None
    """95% interval of the mean, of Student's t with n - 1 degrees of freedom; None for one seed."""
    bootstrap_interval: Ends | None
    """95% percentile interval of the mean over resampled seeds; with few seeds too narrow. None for one seed."""
    effect_size: float | None
    """Cohen's d_z with Hedges' correction, see `hedges_d_z`; None below three seeds, or without deviation."""
    p_value: float | None
    """Of the paired t test, two-sided; None for one seed, or without deviation."""
    detectable: float | None
    """See `detectable_difference`; None for one seed, or without deviation."""


def t_interval(values_S: Sequence[float] | NDArray[np.floating], confidence: float = CONFIDENCE) -> Ends | None:
    """Interval of a mean by Student's t, for values that are roughly normal; None for fewer than two."""
    if len(values_S) < 2:
        return None
    values_S = np.asarray(values_S, dtype=np.float64)
    half = stats.t.ppf((1 + confidence) / 2, len(values_S) - 1) * values_S.std(ddof=1) / math.sqrt(len(values_S))
    return float(values_S.mean() - half), float(values_S.mean() + half)


def paired_difference(
    variant: Mapping[int, float], baseline: Mapping[int, float], seed: int = 0
) -> PairedDifference | None:
    """The difference of a figure over the seeds that both have; None where there is no such seed.

    Args:
        variant: the figure by seed.
        baseline: the same of the other.
        seed: of the bootstrap.
    """
    shared = sorted(variant.keys() & baseline.keys())
    if not shared:
        return None
    differences_S = np.array([variant[one] - baseline[one] for one in shared])
    num_seeds = len(shared)
    deviation = float(differences_S.std(ddof=1)) if num_seeds > 1 else None
    # Rounding alone is no deviation: figures of the same runs differ by nothing at all.
    varies = deviation is not None and deviation > 1e-12 * float(np.abs(list(variant.values())).max(initial=0.0))
    return PairedDifference(
        num_seeds=num_seeds,
        mean=float(differences_S.mean()),
        deviation=deviation,
        t_interval=t_interval(differences_S),
        bootstrap_interval=_bootstrap_of_mean(differences_S, seed) if num_seeds > 1 else None,
        effect_size=hedges_d_z(differences_S) if varies and num_seeds > 2 else None,
        p_value=float(stats.ttest_1samp(differences_S, 0.0).pvalue) if varies else None,
        detectable=detectable_difference(deviation, num_seeds) if varies and deviation else None,
    )


def hedges_d_z(differences_S: NDArray[np.floating]) -> float:
    """Mean of paired differences over their standard deviation (Cohen's d_z), corrected for its bias in few pairs.

    The correction is J = Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2)) with m = n - 1 (Hedges 1981, equation 6e).

    Args:
        differences_S: at least three, not all equal.
    """
    half = (len(differences_S) - 1) / 2
    correction = math.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / math.sqrt(half)
    return float(correction * differences_S.mean() / differences_S.std(ddof=1))


def detectable_difference(deviation: float, num_seeds: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true mean difference that a paired t test of so many seeds would have found.

    The power of a two-sided test at a true mean delta is P(|T| > t), T noncentral t with n - 1 degrees of freedom and
    noncentrality delta sqrt(n) / s, t the quantile of the test. The deviation is taken as known, though it was
    estimated from as few seeds.

    Args:
        deviation: s, of the paired differences, above 0.
        num_seeds: n, at least 2.
        alpha: level of the test, without correction for several.
        power: probability to find the difference.
    """
    degrees = num_seeds - 1
    bound = float(stats.t.ppf(1 - alpha / 2, degrees)) ** 2

    def lacking(noncentrality: float) -> float:
        # Of T squared, a noncentral F: scipy's noncentral t is undefined in places.
        return float(stats.ncf.sf(bound, 1, degrees, noncentrality**2)) - power

    highest = 1.0
    while lacking(highest) < 0:
        highest *= 2
    return float(optimize.brentq(lacking, 0.0, highest)) * deviation / math.sqrt(num_seeds)


def holm(p_values: Sequence[float | None], num_tests: int) -> list[float | None]:
    """p values corrected for their number (Holm 1979): the chance of any false finding stays below the level.

    Sorted upwards, p_(i) becomes the highest of min(1, (m - j) p_(j)) over j from 0 to i.

    Args:
        p_values: of the tests; None for those that could not be made, or not yet.
        num_tests: m, also of those that could not be made, so that no p rises as they are.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (num_tests - rank) * p))
        corrected[place] = highest
    return corrected


def seeds_and_documents_interval(
    difference_SM: NDArray[np.floating],
    size_M: NDArray[np.floating],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Ends | None:
    """Percentile interval of a mean difference per unit of text, over the draw of seeds and of documents.

    Every seed is measured on the same documents, so that the two are crossed: seeds and documents are resampled each on
    their own, and a document that was drawn counts in all seeds (the pigeonhole bootstrap, Owen 2007).

    Args:
        difference_SM: sums of the difference over each document, [S, M].
        size_M: what they are divided by, such as the bytes of each document, [M].
        num_resamples: R.
        seed: of the draws.
        confidence: of the interval.

    Returns:
        None for fewer than two seeds or documents.
    """
    num_seeds, num_documents = difference_SM.shape
    if num_seeds < 2 or num_documents < 2:
        return None
    rng = np.random.default_rng(seed)
    seeds_RS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)
    means_R = np.empty(num_resamples)
    for resample, seeds_S in enumerate(seeds_RS):
        documents_M = np.bincount(rng.integers(num_documents, size=num_documents), minlength=num_documents)
        means_R[resample] = seeds_S @ (difference_SM @ documents_M) / (num_seeds * (size_M @ documents_M))
    return _percentiles(means_R, confidence)


def _bootstrap_of_mean(values_S: NDArray[np.floating], seed: int) -> Ends:
    rng = np.random.default_rng(seed)
    weights_RS = rng.multinomial(len(values_S), np.full(len(values_S), 1 / len(values_S)), NUM_RESAMPLES)
    return _percentiles(weights_RS @ values_S / len(values_S), CONFIDENCE)


def _percentiles(values_R: NDArray[np.floating], confidence: float) -> Ends:
    low, high = np.quantile(values_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
