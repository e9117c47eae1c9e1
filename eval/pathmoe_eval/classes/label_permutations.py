"""Mutual information and purity of a table of counts, and what permuting the classes of its tokens makes of them."""

# Shapes: J distinct (path, class) pairs, P distinct paths, C classes, R tokens whose labels are drawn one by one.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.classes.path_class_counts import JointTable

_MAX_TOKENS = 10**9
_LABELS_AT_ONCE = 1 << 20
_LARGE_PATH = 1 << 12


@dataclass(frozen=True, kw_only=True)
class AgainstPermutations:
    """A statistic beside its values after permutations of the classes over the tokens."""

    observed: float
    """Its value."""
    null_mean: float
    """Its mean over permutations: what this many paths show of classes that have nothing to do with them."""
    null_std: float
    """Its standard deviation over permutations."""
    excess: float
    """observed - null_mean."""
    z: float | None
    """excess / null_std; None where all permutations give the same. Neighbouring tokens are alike and a permutation
    makes them independent, so z overstates how sure the excess is, and grows with the sample: compare excesses."""


def against_permutations(
    table: JointTable, *, num_permutations: int, seed: int
) -> tuple[AgainstPermutations, AgainstPermutations]:
    """Mutual information in bits, I = H(path) + H(class) - H(path, class), and purity, each against permutations.

    A permutation gives the classes of all tokens to the tokens anew, each way equally likely, so that the counts of
    paths and of classes stay what they are and only what binds them is gone. The new table has that distribution given
    its margins, and is drawn from them without the tokens. It depends on the sizes of the margins alone, so that no
    naming of experts or classes changes what is drawn. (Shifting whole documents' classes would keep their order, too,
    and so give a wider null; "permuted labels" we take to be permuted token by token: our choice.)

    Raises:
        ValueError: 10^9 tokens or more, which the draws do not serve.
    """
    num_tokens = int(table.counts_J.sum())
    if num_tokens >= _MAX_TOKENS:
        raise ValueError(
            f"path_ids ({num_tokens} tokens) must be fewer than {_MAX_TOKENS} to permute their classes; pass a sample"
        )
    sizes_P = -np.sort(-table.path_counts_P)
    sizes_C = -np.sort(-table.class_counts_C)
    margin_bits = np.log2(num_tokens) - (_sum_x_log_x(sizes_P) + _sum_x_log_x(sizes_C)) / num_tokens
    rng = np.random.default_rng(seed)

    def statistics(counts_J: NDArray[np.int64], majorities: int) -> tuple[float, float]:
        return float(margin_bits + _sum_x_log_x(counts_J) / num_tokens), majorities / num_tokens

    observed = statistics(table.counts_J, int(np.maximum.reduceat(table.counts_J, table.starts_P).sum()))
    permuted = [statistics(*_permuted_counts(sizes_P, sizes_C, rng)) for _ in range(num_permutations)]
    information, purity = (
        _compare(value, null) for value, null in zip(observed, zip(*permuted, strict=True), strict=True)
    )
    return information, purity


def _compare(observed: float, null: tuple[float, ...]) -> AgainstPermutations:
    mean, std = float(np.mean(null)), float(np.std(null, ddof=1))
    is_constant = len(set(null)) == 1
    excess = observed - (null[0] if is_constant else mean)
    return AgainstPermutations(
        observed=observed,
        null_mean=null[0] if is_constant else mean,
        null_std=0.0 if is_constant else std,
        excess=excess,
        z=None if is_constant else excess / std,
    )


def _sum_x_log_x(counts_J: NDArray[np.int64]) -> float:
    """Sum of n log2 n, the same to the last bit for the same counts in any order."""
    # Ones add nothing, but a number of terms that depends on them would change how numpy groups the sum.
    sizes, multiplicity = np.unique(counts_J[counts_J > 1], return_counts=True)
    return float(np.sum(multiplicity * (sizes * np.log2(sizes))))


def _permuted_counts(
    sizes_P: NDArray[np.int64], sizes_C: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """Counts of pairs after one permutation, but those of paths of one token, and the sum of each path's largest.

    sizes_P and sizes_C descend. A path of one token has one pair of one token, whatever the permutation.
    """
    left_C = sizes_C.copy()
    counts, majorities = [], int(np.count_nonzero(sizes_P == 1))
    num_large, num_several = np.count_nonzero(sizes_P >= _LARGE_PATH), np.count_nonzero(sizes_P > 1)
    for size in sizes_P[:num_large].tolist():
        counts_C = rng.multivariate_hypergeometric(left_C, size, method="marginals")
        left_C -= counts_C
        counts.append(counts_C[counts_C > 0])
        majorities += int(counts_C.max())
    for piece_P in _pieces(sizes_P[num_large:num_several]):
        num_labels = int(piece_P.sum())
        drawn_C = rng.multivariate_hypergeometric(left_C, num_labels, method="marginals")
        left_C -= drawn_C
        labels_R = np.repeat(np.arange(len(drawn_C)), drawn_C)
        rng.shuffle(labels_R)
        cells_J, counts_J = np.unique(
            np.repeat(np.arange(len(piece_P)), piece_P) * len(drawn_C) + labels_R, return_counts=True
        )
        starts_P = np.searchsorted(cells_J, np.arange(len(piece_P)) * len(drawn_C))
        counts.append(counts_J)
        majorities += int(np.maximum.reduceat(counts_J, starts_P).sum())
    return np.concatenate(counts) if counts else np.empty(0, dtype=np.int64), majorities


def _pieces(sizes_P: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Consecutive paths, about `_LABELS_AT_ONCE` tokens at a time."""
    piece_of_P = (np.cumsum(sizes_P) - sizes_P) // _LABELS_AT_ONCE
    yield from np.split(sizes_P, np.flatnonzero(np.diff(piece_of_P)) + 1) if len(sizes_P) else ()
