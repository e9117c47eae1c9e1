"""Rarefaction: what a smaller sample of the same tokens would have shown, exactly and without drawing one.

Distinct paths and their entropy grow with the number of tokens, so that samples compare at equal numbers only. A random
subsample of n of the N tokens holds a hypergeometric number of the tokens of each path, so that the expected statistics
of all subsamples follow from how many paths were seen how often.
"""

# Shapes: C distinct values of a count, X points of a distribution, G numbers of tokens.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.paths.hypergeometric import hypergeometric_pmf

_MAX_ROWS = 1024
# The number of a path's tokens leaves mean +- t with probability below 2 exp(-_TAIL), t as in `_points`.
_TAIL = 30.0
_SD_PER_STEP = 3.0
# The widest window: just below a standard deviation of 2 * _SD_PER_STEP, where the step is still 1.
_NUM_POINTS = 120


@dataclass(frozen=True, kw_only=True)
class Rarefaction:
    """Expected statistics of random subsamples without replacement; tuples have one entry per number of tokens."""

    num_tokens: tuple[int, ...]
    """Tokens in the subsample, ascending; the last is the whole sample unless a grid was given."""
    num_paths: tuple[float, ...]
    """Expected distinct paths (Hurlbert, Ecology 52, 1971, 577-586)."""
    entropy_bits: tuple[float, ...]
    """Expected plug-in entropy, in bits."""
    ceiling_bits: tuple[float, ...]
    """log2 of the tokens: no subsample of this size can have a higher entropy."""
    share_of_ceiling: tuple[float | None, ...]
    """entropy_bits / ceiling_bits; None for a single token, whose ceiling is 0."""


def rarefaction(
    sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64], num_tokens: Sequence[int] | None = None
) -> Rarefaction:
    """Rarefaction curves of distinct paths and of plug-in entropy.

    With X tokens of a path with c of the N tokens in a subsample of n, X hypergeometric, the curves are the sums over
    paths of 1 - P(X = 0) and of E[-X/n log2(X/n)]. Sums over X are exact for small variances; for larger ones they take
    every h-th X, which for a sum of independent indicators with standard deviation s errs by less than
    h exp(-s^2 (1 - cos(2 pi / h))): here below 1e-15, so that the tails left out (below 1e-12) decide.

    Args:
        sizes_C: int64 [C], distinct values that the count of a path takes, each at least 1.
        multiplicity_C: int64 [C], how many paths have that count.
        num_tokens: ascending numbers of tokens; None takes the powers of two up to N, and N.

    Raises:
        ValueError: a number of tokens below 1 or above N, or not ascending.
    """
    total = int(np.sum(sizes_C * multiplicity_C))
    grid = powers_of_two(total) if num_tokens is None else tuple(int(n) for n in num_tokens)
    _check_grid(grid, total)
    paths, entropies = zip(*(_expected(sizes_C, multiplicity_C, total, n) for n in grid), strict=True)
    ceilings = tuple(math.log2(n) for n in grid)
    return Rarefaction(
        num_tokens=grid,
        num_paths=paths,
        entropy_bits=entropies,
        ceiling_bits=ceilings,
        share_of_ceiling=tuple(h / top if top else None for h, top in zip(entropies, ceilings, strict=True)),
    )


def powers_of_two(total: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `total`, and `total`."""
    powers = tuple(1 << exponent for exponent in range(total.bit_length()))
    return powers if powers[-1] == total else (*powers, total)


def _check_grid(grid: tuple[int, ...], total: int) -> None:
    if not grid or list(grid) != sorted(set(grid)):
        raise ValueError(f"num_tokens ({list(grid)}) must ascend and hold at least 1 number; sort it")
    wrong = [n for n in grid if not 1 <= n <= total]
    if wrong:
        raise ValueError(
            f"num_tokens ({wrong[0]}) must be between 1 and the {total} tokens that were counted; "
            "a subsample is no larger than its sample"
        )


def _expected(
    sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64], total: int, drawn: int
) -> tuple[float, float]:
    """Expected distinct paths and expected plug-in entropy in bits of `drawn` of `total` tokens."""
    num_paths = x_log_x = 0.0
    for start in range(0, len(sizes_C), _MAX_ROWS):  # memory does not grow with the number of distinct counts
        rows = slice(start, start + _MAX_ROWS)
        seen_C, x_log_x_C = _moments(sizes_C[rows], total, drawn)
        num_paths += float(np.sum(multiplicity_C[rows] * seen_C))
        x_log_x += float(np.sum(multiplicity_C[rows] * x_log_x_C))
    return num_paths, max(0.0, math.log2(drawn) - x_log_x / drawn)


def _moments(sizes_C: NDArray[np.int64], total: int, drawn: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(X > 0) and E[X log2 X] for paths with these counts."""
    x_CX, step_C = _points(sizes_C, total, drawn)
    weight_CX = hypergeometric_pmf(x_CX, total, sizes_C[:, None], drawn) * step_C[:, None]
    positive_CX = np.where(x_CX > 0, weight_CX, 0.0)
    return positive_CX.sum(axis=1), np.sum(positive_CX * x_CX * np.log2(np.maximum(x_CX, 1.0)), axis=1)


def _points(sizes_C: NDArray[np.int64], total: int, drawn: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values of X around the mean of each count, [C, X], and the step between them.

    By Bernstein's inequality |X - mean| < t fails with probability below 2 exp(-t^2 / (2 s^2 + 2 t / 3)).
    """
    share_C = sizes_C / total
    mean_C = drawn * share_C
    variance_C = mean_C * (1 - share_C) * ((total - drawn) / max(1, total - 1))
    reach_C = _TAIL / 3 + np.sqrt(_TAIL**2 / 9 + 2 * _TAIL * variance_C)
    step_C = np.maximum(1.0, np.floor(np.sqrt(variance_C) / _SD_PER_STEP))
    first_C = np.maximum(0.0, np.floor(mean_C - reach_C))
    return first_C[:, None] + step_C[:, None] * np.arange(_NUM_POINTS), step_C
