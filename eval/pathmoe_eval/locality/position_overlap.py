"""How alike routing is at one kind of aligned positions: of all layers, of each, by distance, beside chance."""

# Shapes: L MoE layers, A aligned positions, P pairs of completions.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.locality.alignment import Alignment
from pathmoe_eval.locality.fork_statistics import fork_interval


@dataclass(frozen=True, kw_only=True)
class DistanceBin:
    """Positions at some distances from the fork."""

    first_distance: int
    """Tokens since the fork, 1 for its children."""
    last_distance: int | None
    """Included; None without end."""
    num_positions: int
    """Aligned positions."""
    num_pairs: int
    """Pairs of completions that have any."""
    num_forks: int
    """Forks at which these part."""
    jaccard: float | None
    """As in `Overlap`; None without positions."""
    jaccard_interval: tuple[float, float] | None
    """As in `Overlap`."""
    jaccard_null_matched: float | None
    """As in `Overlap`."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Jaccard of expert sets at one kind of aligned positions; tuples have one entry a layer."""

    num_positions: int
    """Aligned positions."""
    num_pairs: int
    """Pairs of completions that have any."""
    num_forks: int
    """Forks at which these part."""
    jaccard: float | None
    """Mean over the positions of a pair, then over pairs, then over layers; None without positions."""
    jaccard_interval: tuple[float, float] | None
    """Of the draw of forks: bootstrap. None below two forks."""
    jaccard_pooled: float | None
    """Mean over all positions, then over layers: long pairs count more."""
    jaccard_of_layer: tuple[float, ...] | None
    """`jaccard` before the mean over layers."""
    jaccard_interval_of_layer: tuple[tuple[float, float] | None, ...] | None
    """Of each, not jointly."""
    num_matched: int
    """Positions for which another occurrence was drawn."""
    jaccard_null_matched: float | None
    """`jaccard` with the second token of each position taken from another place where the same id occurs, see
    `draw_matches`: what the identity of the two tokens alone makes alike. None where no id occurs elsewhere."""
    jaccard_of_layer_null_matched: tuple[float, ...] | None
    """The same of each layer."""
    multiple: float | None
    """`jaccard` / `jaccard_null_uniform_ratio`: the multiple of random that papers print."""
    multiple_exact: float | None
    """`jaccard` / `jaccard_null_uniform`."""
    distances: tuple[DistanceBin, ...]
    """By distance from the fork."""


class KindOfPosition:
    """Some of the aligned positions, with their Jaccard and that of their matches."""

    def __init__(
        self,
        found_LA: NDArray[np.float64],
        null_LA: NDArray[np.float64],
        has_match_A: NDArray[np.bool_],
        alignment: Alignment,
        fork_P: NDArray[np.int64],
        which_A: NDArray[np.bool_],
    ) -> None:
        self.found_LA = found_LA[:, which_A]
        self.null_LA = null_LA[:, which_A]
        self.has_match_A = has_match_A[which_A]
        self.pair_A = alignment.pair_A[which_A]
        self.distance_A = alignment.distance_A[which_A]
        self.fork_P = fork_P

    def of_pairs(
        self, value_LA: NDArray[np.float64], which_A: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean over the positions of each pair, [layers, pairs], and 1 for each pair that has any, else 0."""
        pair_A = self.pair_A
        if which_A is not None:
            value_LA, pair_A = value_LA[:, which_A], pair_A[which_A]
        count_P = np.bincount(pair_A, minlength=len(self.fork_P))
        sum_LP = np.stack([np.bincount(pair_A, weights=value_A, minlength=len(count_P)) for value_A in value_LA])
        return sum_LP / np.maximum(count_P, 1), (count_P > 0).astype(np.float64)


def position_overlap(
    kind: KindOfPosition, starts: Sequence[int], nulls: tuple[float, float], settings: Bootstrap
) -> Overlap:
    """The figures of one kind of positions; `nulls` are the exact mean and the ratio of means of uniform sets."""
    mean_LP, weight_P = kind.of_pairs(kind.found_LA)
    jaccard_L = _mean_of_pairs(mean_LP, weight_P)
    null_L = _mean_of_pairs(*kind.of_pairs(kind.null_LA, kind.has_match_A))
    jaccard = None if jaccard_L is None else float(np.mean(jaccard_L))
    return Overlap(
        num_positions=len(kind.pair_A),
        num_pairs=int(weight_P.sum()),
        num_forks=len(np.unique(kind.fork_P[weight_P > 0])),
        jaccard=jaccard,
        jaccard_interval=fork_interval(mean_LP.mean(axis=0), weight_P, kind.fork_P, settings),
        jaccard_pooled=None if jaccard is None else float(kind.found_LA.mean()),
        jaccard_of_layer=jaccard_L,
        jaccard_interval_of_layer=(
            None
            if jaccard_L is None
            else tuple(fork_interval(mean_P, weight_P, kind.fork_P, settings) for mean_P in mean_LP)
        ),
        num_matched=int(np.count_nonzero(kind.has_match_A)),
        jaccard_null_matched=None if null_L is None else float(np.mean(null_L)),
        jaccard_of_layer_null_matched=null_L,
        multiple=None if jaccard is None else jaccard / nulls[1],
        multiple_exact=None if jaccard is None else jaccard / nulls[0],
        distances=tuple(
            _distance_bin(kind, first, after, settings)
            for first, after in zip(starts, [*starts[1:], None], strict=True)
        ),
    )


def _distance_bin(kind: KindOfPosition, first: int, after: int | None, settings: Bootstrap) -> DistanceBin:
    is_in_A = (kind.distance_A >= first) & (kind.distance_A < (np.inf if after is None else after))
    mean_LP, weight_P = kind.of_pairs(kind.found_LA, is_in_A)
    jaccard_L = _mean_of_pairs(mean_LP, weight_P)
    null_L = _mean_of_pairs(*kind.of_pairs(kind.null_LA, is_in_A & kind.has_match_A))
    return DistanceBin(
        first_distance=first,
        last_distance=None if after is None else after - 1,
        num_positions=int(np.count_nonzero(is_in_A)),
        num_pairs=int(weight_P.sum()),
        num_forks=len(np.unique(kind.fork_P[weight_P > 0])),
        jaccard=None if jaccard_L is None else float(np.mean(jaccard_L)),
        jaccard_interval=fork_interval(mean_LP.mean(axis=0), weight_P, kind.fork_P, settings),
        jaccard_null_matched=None if null_L is None else float(np.mean(null_L)),
    )


def _mean_of_pairs(mean_LP: NDArray[np.float64], weight_P: NDArray[np.float64]) -> tuple[float, ...] | None:
    if not weight_P.any():
        return None
    return tuple((mean_LP @ weight_P / weight_P.sum()).tolist())
