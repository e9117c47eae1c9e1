"""Mutual information and purity of a table of counts, and what permuting the classes of its tokens makes of them."""

# Shapes: J distinct (path, class) pairs, P distinct paths, C classes, R tokens whose labels are drawn one by one.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.classes.path_class_counts import JointTable
from pathmoe_eval.draws_without_replacement import groups_of_rows
from pathmoe_eval.layers.permuted_tables import random_tables

_MAX_TOKENS = 10**9 - 1  # of one draw of numpy
_LABELS_AT_ONCE = 1 << 20
_LARGE_PATH = 2  # tokens of a path for each class, from which on its counts are drawn, and not its labels
_CELLS_PER_LABEL = 16


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
    """
    num_tokens = int(table.counts_J.sum())
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
    counts, majorities = [np.empty(0, dtype=np.int64)], 0
    for paths, classes_C in groups_of_rows(sizes_P, sizes_C, _MAX_TOKENS, rng):
        of_group, of_most = _permuted_group(sizes_P[paths], classes_C, rng)
        counts += of_group
        majorities += of_most
    return np.concatenate(counts), majorities


def _permuted_group(
    sizes_P: NDArray[np.int64], left_C: NDArray[np.int64], rng: np.random.Generator
) -> tuple[list[NDArray[np.int64]], int]:
    """The same of paths of fewer tokens than a draw of numpy serves, or of one path."""
    if len(sizes_P) == 1:
        return [left_C[(left_C > 0) & (sizes_P[0] > 1)]], int(left_C.max())
    counts, majorities = [], int(np.count_nonzero(sizes_P == 1))
    num_several = int(np.count_nonzero(sizes_P > 1))
    num_large = min(num_several, int(np.count_nonzero(sizes_P >= _LARGE_PATH * len(left_C))))
    large = [(piece_P, True) for piece_P in _pieces(sizes_P[:num_large])]
    small = [(piece_P, False) for piece_P in _pieces(sizes_P[num_large:num_several])]
    for piece_P, is_large in large + small:
        drawn_C = rng.multivariate_hypergeometric(left_C, int(piece_P.sum()), method="marginals")
        left_C = left_C - drawn_C
        counts_J, of_most = (_pairs_of_table if is_large else _pairs_of_labels)(piece_P, drawn_C[drawn_C > 0], rng)
        counts.append(counts_J)
        majorities += of_most
    return counts, majorities


def _pairs_of_table(
    sizes_P: NDArray[np.int64], sizes_C: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """Counts of the pairs of paths of these sizes with classes of these, and of each path's largest: by pair."""
    (table_PC,) = random_tables(sizes_P, sizes_C, 1, rng)
    return table_PC[table_PC > 0], int(table_PC.max(axis=1).sum())


def _pairs_of_labels(
    sizes_P: NDArray[np.int64], sizes_C: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """The same by token."""
    num_classes, num_cells = len(sizes_C), len(sizes_P) * len(sizes_C)
    labels_R = np.repeat(np.arange(num_classes), sizes_C)
    rng.shuffle(labels_R)
    cells_R = np.repeat(np.arange(len(sizes_P)) * num_classes, sizes_P) + labels_R
    if num_cells <= _CELLS_PER_LABEL * len(labels_R):  # a table of all pairs is faster than a sort
        table_PC = np.bincount(cells_R, minlength=num_cells).reshape(-1, num_classes)
        return table_PC[table_PC > 0], int(table_PC.max(axis=1).sum())
    cells_J, counts_J = np.unique(cells_R, return_counts=True)
    starts_P = np.searchsorted(cells_J, np.arange(len(sizes_P)) * num_classes)
    return counts_J, int(np.maximum.reduceat(counts_J, starts_P).sum())


def _pieces(sizes_P: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Consecutive paths, about `_LABELS_AT_ONCE` tokens at a time."""
    piece_of_P = (np.cumsum(sizes_P) - sizes_P) // _LABELS_AT_ONCE
    yield from np.split(sizes_P, np.flatnonzero(np.diff(piece_of_P)) + 1) if len(sizes_P) else ()
