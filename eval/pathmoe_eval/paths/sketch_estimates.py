"""What a sketch of paths says of all of them: some were counted, a sample speaks for the rest."""

# Shapes: P paths, C distinct values of a count, K numbers of paths.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.paths.coverage import TOP_PATHS, RankFrequency, rank_frequency, tokens_on_top


@dataclass(frozen=True, kw_only=True)
class SketchConcentration:
    """Estimated concentration; standard errors are those of the sampling of paths, given the tokens, and 0 if exact."""

    num_tokens: int
    """Tokens that were counted, exactly."""
    num_paths: int
    """Distinct paths among them."""
    num_paths_standard_error: float
    """Of num_paths."""
    entropy_bits: float
    """Plug-in entropy of the tokens, in bits: what `PathCounts` would give."""
    entropy_standard_error_bits: float
    """Of entropy_bits."""
    effective_paths: float
    """2^entropy_bits."""
    ceiling_bits: float
    """log2(num_tokens)."""
    top_paths: tuple[int, ...]
    """Numbers of paths K, ascending, none above num_paths."""
    share: tuple[float, ...]
    """Share of the tokens on the K most frequent paths."""
    share_standard_error: tuple[float, ...]
    """Of share; too low just beyond the heavy paths: see `estimate`."""
    rank_frequency: RankFrequency
    """The Zipf plot: exact ranks as far as paths are heavy, estimated ones beyond."""
    num_heavy: int
    """Paths that are counted for themselves."""
    num_sampled: int
    """Sampled paths, which speak for those that are not heavy."""
    sampling_probability: float
    """Of a path to be in the sample; 1 if all of them are, and the results exact."""
    missed_share: float
    """Upper bound of the tokens of heavy paths that came before these were noticed, as a share of all tokens: a bias
    that no standard error holds. They count as tokens of other paths."""


def estimate(
    *,
    num_tokens: int,
    heavy_counts_P: NDArray[np.int64],
    num_missed: int,
    sampled_counts_P: NDArray[np.int64],
    sampling_probability: float,
) -> SketchConcentration:
    """Estimates over all paths, the heavy ones being taken as counted.

    With p the probability to be sampled, R the tokens that are not on heavy paths, and sums over the sampled paths of
    counts c, whose number is known only in expectation while R is known:

        distinct paths        heavy + n / p                      variance (1 - p) n / p^2         (Horvitz-Thompson)
        sum of f(c) of rest   R (sum of f(c)) / (sum of c)       variance (1 - p) w^2 sum of (f(c) - c F)^2   (ratio)

    with n sampled paths, F = (sum of f) / (sum of c) and w = R / (sum of c). The entropy takes f(c) = c log2 c; tokens
    on the K most frequent paths are the minimum over t of K t + sum over all paths of (c - t)+, and take that f. The
    ratio's bias is of order 1/n. The error of a coverage takes t as known, and is too low (by a few tenths) where only
    a handful of sampled paths lie above t, which is just beyond the heavy paths.

    Args:
        num_tokens: all tokens.
        heavy_counts_P: int64 [heavy paths], their counts.
        num_missed: upper bound of what these counts lack together.
        sampled_counts_P: int64 [sampled paths that are not heavy], exact counts.
        sampling_probability: p, in (0, 1].
    """
    rest = num_tokens - int(heavy_counts_P.sum())
    sample = _Sample(sampled_counts_P, rest, sampling_probability)
    log_sum, log_error = sample.total(np.multiply(sampled_counts_P, np.log2(sampled_counts_P)))
    heavy_log_sum = float(np.sum(heavy_counts_P * np.log2(heavy_counts_P)))
    entropy_bits = max(0.0, math.log2(num_tokens) - (heavy_log_sum + log_sum) / num_tokens)
    num_paths = len(heavy_counts_P) + len(sampled_counts_P) / sampling_probability
    sizes_C, multiplicity_C = _frequencies(heavy_counts_P, sampled_counts_P, sample.weight)
    top = tuple(k for k in TOP_PATHS if k <= num_paths)
    share, share_error = _coverage(sizes_C, multiplicity_C, sample, top, num_tokens)
    return SketchConcentration(
        num_tokens=num_tokens,
        num_paths=round(num_paths),
        num_paths_standard_error=math.sqrt((1 - sampling_probability) * len(sampled_counts_P)) / sampling_probability,
        entropy_bits=entropy_bits,
        entropy_standard_error_bits=log_error / num_tokens,
        effective_paths=2.0**entropy_bits,
        ceiling_bits=math.log2(num_tokens),
        top_paths=top,
        share=share,
        share_standard_error=share_error,
        rank_frequency=rank_frequency(sizes_C, multiplicity_C),
        num_heavy=len(heavy_counts_P),
        num_sampled=len(sampled_counts_P),
        sampling_probability=sampling_probability,
        missed_share=num_missed / num_tokens,
    )


class _Sample:
    """Sums over the paths that are not heavy, from the sampled ones."""

    def __init__(self, counts_P: NDArray[np.int64], rest: int, probability: float) -> None:
        self.counts_P = counts_P
        self.weight = rest / int(counts_P.sum()) if len(counts_P) else 0.0
        self._left_out = 1 - probability

    def total(self, values_P: NDArray[np.floating]) -> tuple[float, float]:
        """Estimate of the sum over all paths of what `values_P` is of the sampled ones, and its standard error."""
        if not len(values_P):
            return 0.0, 0.0
        residual_P = values_P - self.counts_P * (values_P.sum() / self.counts_P.sum())
        error = self.weight * math.sqrt(self._left_out * float(np.sum(residual_P**2)))
        return self.weight * float(values_P.sum()), error


def _frequencies(
    heavy_counts_P: NDArray[np.int64], sampled_counts_P: NDArray[np.int64], weight: float
) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """Ascending distinct counts, and how many paths are estimated to have each."""
    counts_P = np.concatenate([heavy_counts_P, sampled_counts_P])
    weights_P = np.concatenate([np.ones(len(heavy_counts_P)), np.full(len(sampled_counts_P), weight)])
    sizes_C, inverse_P = np.unique(counts_P, return_inverse=True)
    multiplicity_C = np.zeros(len(sizes_C))
    np.add.at(multiplicity_C, inverse_P, weights_P)
    return sizes_C, multiplicity_C


def _coverage(
    sizes_C: NDArray[np.int64],
    multiplicity_C: NDArray[np.floating],
    sample: _Sample,
    top: tuple[int, ...],
    num_tokens: int,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Share of the tokens on the K most frequent paths, and its standard error."""
    paths_to_C = np.cumsum(multiplicity_C[::-1])
    at_K = np.minimum(np.searchsorted(paths_to_C, top), len(sizes_C) - 1)
    errors = [sample.total(np.maximum(sample.counts_P - float(t), 0.0))[1] for t in sizes_C[::-1][at_K]]
    tokens = tokens_on_top(sizes_C, multiplicity_C, top)
    return tuple(min(1.0, t / num_tokens) for t in tokens), tuple(error / num_tokens for error in errors)
