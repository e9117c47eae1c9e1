"""How much of the tokens the most frequent paths carry, and how frequency falls with rank."""

# Shapes: C distinct values of a count, G numbers of paths, E outcomes of a layer, R ranks.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP_PATHS = (1, 10, 100, 500, 1000, 10_000, 100_000)
_PERCENT = (50, 90, 99)
_POINTS_PER_DECADE = 10
# The range of the fitted line: the head of a Zipf curve is flat, and low counts are steps (our choice).
_FIRST_RANK = 10
_LEAST_COUNT = 10


@dataclass(frozen=True, kw_only=True)
class PathCoverage:
    """Share of the tokens on the most frequent paths of their own sample."""

    num_tokens: int
    """Tokens that were counted."""
    top_paths: tuple[int, ...]
    """Numbers of paths K, ascending, none above the distinct paths."""
    share: tuple[float, ...]
    """Share of the tokens on the K most frequent paths; too high where those were seen a few times only."""
    share_null: tuple[float, ...] | None
    """Probability of the K likeliest paths if layers chose independently with the same loads; None: loads unknown."""
    percent: tuple[int, ...]
    """Percentages of the tokens."""
    paths_needed: tuple[int, ...]
    """Least number of paths that carry that percentage of the tokens."""


@dataclass(frozen=True, kw_only=True)
class RankFrequency:
    """A Zipf plot: how often the r-th most frequent path was seen."""

    rank: tuple[int, ...]
    """Ranks from 1 to the number of distinct paths, evenly spaced in the logarithm."""
    count: tuple[int, ...]
    """Tokens on the path of that rank."""
    slope: float | None
    """Least-squares slope of log(count) over log(rank) in the range below; None if that holds fewer than two ranks."""
    slope_first_rank: int
    """First rank of the range: the head is flatter than the law (our choice)."""
    slope_last_rank: int
    """Last rank of the range: the last whose path was seen often enough that counts are no steps (our choice)."""


def coverage(
    sizes_C: NDArray[np.int64],
    multiplicity_C: NDArray[np.int64],
    layer_shares: Sequence[NDArray[np.float64]] | None = None,
) -> PathCoverage:
    """Coverage of the tokens by the most frequent paths, for numbers of paths from 1 up.

    Args:
        sizes_C: int64 [C], ascending distinct values that the count of a path takes, each at least 1.
        multiplicity_C: int64 [C], how many paths have that count.
        layer_shares: float [outcomes] a layer, the share of the tokens on each expert (or set), for the null.
    """
    num_paths = int(multiplicity_C.sum())
    num_tokens = int(np.sum(sizes_C * multiplicity_C))
    top = tuple(k for k in TOP_PATHS if k <= num_paths)
    return PathCoverage(
        num_tokens=num_tokens,
        top_paths=top,
        share=tuple(tokens / num_tokens for tokens in tokens_on_top(sizes_C, multiplicity_C, top)),
        share_null=None if layer_shares is None else independent_top_shares(layer_shares, top),
        percent=_PERCENT,
        paths_needed=tuple(_paths_needed(sizes_C, multiplicity_C, percent) for percent in _PERCENT),
    )


def rank_frequency(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.number]) -> RankFrequency:
    """Points and slope of the Zipf plot (arguments as in `coverage`; `multiplicity_C` may be an estimate)."""
    num_paths = max(1, int(multiplicity_C.sum()))
    num_points = 1 + math.ceil(_POINTS_PER_DECADE * math.log10(num_paths))
    ranks_R = np.unique(np.rint(np.geomspace(1, num_paths, num_points)).astype(np.int64))
    ranks_to_C = np.cumsum(multiplicity_C[::-1])
    counts_R = sizes_C[::-1][np.minimum(np.searchsorted(ranks_to_C, ranks_R), len(sizes_C) - 1)]
    last_rank = int(multiplicity_C[sizes_C >= _LEAST_COUNT].sum())
    in_range_R = (ranks_R >= _FIRST_RANK) & (ranks_R <= last_rank)
    return RankFrequency(
        rank=tuple(ranks_R.tolist()),
        count=tuple(counts_R.tolist()),
        slope=_slope(np.log(ranks_R[in_range_R]), np.log(counts_R[in_range_R])),
        slope_first_rank=_FIRST_RANK,
        slope_last_rank=last_rank,
    )


def tokens_on_top(sizes_C: NDArray[np.number], multiplicity_C: NDArray[np.number], top: Sequence[int]) -> list[float]:
    """Tokens on the K most frequent paths, for each K of `top` (`multiplicity_C` may be an estimate, of any number)."""
    sizes_C, multiplicity_C = sizes_C[::-1], multiplicity_C[::-1]
    paths_to_C, tokens_to_C = np.cumsum(multiplicity_C), np.cumsum(sizes_C * multiplicity_C)
    last = np.minimum(np.searchsorted(paths_to_C, top), len(sizes_C) - 1)
    # Of the count at which the K-th path lies, those beyond it do not count.
    return [float(t) for t in tokens_to_C[last] - np.maximum(paths_to_C[last] - top, 0) * sizes_C[last]]


def independent_top_shares(layer_shares: Sequence[NDArray[np.float64]], top: Sequence[int]) -> tuple[float, ...]:
    """Probability of the K likeliest paths of independent layers, for each K of `top` (ascending).

    The K likeliest paths start with one of the K likeliest starts; and the i-th likeliest start with the j-th likeliest
    outcome of the next layer has i * j - 1 paths that are at least as likely, so that i * j <= K suffices.

    Args:
        layer_shares: float [outcomes] a layer, each summing to 1.
        top: numbers of paths.
    """
    if not top:
        return ()
    likeliest = np.ones(1)
    for shares_E in layer_shares:
        descending_E = np.sort(shares_E[shares_E > 0])[::-1][: top[-1]]
        grown = np.concatenate([likeliest[: top[-1] // (j + 1)] * share for j, share in enumerate(descending_E)])
        likeliest = np.sort(grown)[::-1][: top[-1]]
    shares_to = np.cumsum(likeliest)
    return tuple(float(min(1.0, shares_to[min(k, len(shares_to)) - 1])) for k in top)


def _paths_needed(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64], percent: int) -> int:
    sizes_C, multiplicity_C = sizes_C[::-1], multiplicity_C[::-1]
    tokens_to_C = np.cumsum(sizes_C * multiplicity_C)
    goal = -(-int(tokens_to_C[-1]) * percent // 100)
    at = int(np.searchsorted(tokens_to_C, goal))
    tokens_before = int(tokens_to_C[at] - sizes_C[at] * multiplicity_C[at])
    return int(multiplicity_C[:at].sum()) - (tokens_before - goal) // int(sizes_C[at])


def _slope(x_R: NDArray[np.float64], y_R: NDArray[np.float64]) -> float | None:
    if len(x_R) < 2:
        return None
    x_R = x_R - x_R.mean()
    return float(x_R @ y_R / (x_R @ x_R))
