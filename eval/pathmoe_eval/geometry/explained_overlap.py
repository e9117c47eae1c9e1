"""How much of the experts that two tokens share is told by the distance of their hidden states, in each space."""

# Shapes: P pairs, B bins.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.pairs import SPACES, TokenPairs

NUM_BINS = 50


@dataclass(frozen=True, kw_only=True)
class ExplainedOverlap:
    """Share of the variance of expert overlap over pairs that a distance explains, whatever the form of the dependence.

    That is the correlation ratio over bins of equally many pairs, corrected for their number as R^2 is (our choice).
    """

    num_pairs: int
    mean_overlap: float
    """Over all pairs."""
    share: dict[str, float | None]
    """By space, and `logits` for the distance of centred logits: the row space as the router weighs its directions.
    None where overlap does not vary, or all distances are equal."""
    curve: dict[str, tuple[tuple[float, float, float], ...]]
    """Mean distance, mean overlap and mean distance of centred logits of each bin, by space."""


def explained_overlap(pairs: TokenPairs, num_bins: int = NUM_BINS) -> ExplainedOverlap:
    """Explained variance of the overlap by each distance.

    Args:
        pairs: more of them than bins.
        num_bins: B.
    """
    distances = {**pairs.distance, "logits": pairs.logit_distance_P}
    bins = {space: _bins(distance_P, num_bins) for space, distance_P in distances.items()}
    return ExplainedOverlap(
        num_pairs=len(pairs.overlap_P),
        mean_overlap=float(pairs.overlap_P.mean()),
        share={space: correlation_ratio(pairs.overlap_P, bin_P) for space, bin_P in bins.items()},
        curve={
            space: _curve((distances[space], pairs.overlap_P, pairs.logit_distance_P), bins[space]) for space in SPACES
        },
    )


def correlation_ratio(values_P: NDArray[np.floating], bin_P: NDArray[np.integer]) -> float | None:
    """Share R^2 of the variance of values between bins, adjusted for their number: 1 - (1 - R^2) (P - 1) / (P - B).

    None where values do not vary, or fill no more than one bin.
    """
    counts_B = np.bincount(bin_P)
    counts_B = counts_B[counts_B > 0]
    num_bins, num_pairs = len(counts_B), len(values_P)
    total = float(((values_P - values_P.mean()) ** 2).sum())
    if num_bins < 2 or num_pairs <= num_bins or total <= 1e-12 * num_pairs:
        return None
    sums_B = np.bincount(bin_P, weights=values_P)
    means_B = sums_B[np.bincount(bin_P) > 0] / counts_B
    within = 1 - float(counts_B @ (means_B - values_P.mean()) ** 2) / total
    return 1 - within * (num_pairs - 1) / (num_pairs - num_bins)


def _bins(distance_P: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    """Bins of equally many pairs; equal distances share one."""
    edges = np.unique(np.quantile(distance_P, np.linspace(0, 1, num_bins + 1)[1:-1]))
    return np.searchsorted(edges, distance_P, side="right")


def _curve(
    columns: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], bin_P: NDArray[np.int64]
) -> tuple[tuple[float, float, float], ...]:
    counts_B = np.bincount(bin_P)
    is_there_B = counts_B > 0
    x_B, y_B, z_B = (
        (np.bincount(bin_P, weights=values_P)[is_there_B] / counts_B[is_there_B]).tolist() for values_P in columns
    )
    return tuple(zip(x_B, y_B, z_B, strict=True))
