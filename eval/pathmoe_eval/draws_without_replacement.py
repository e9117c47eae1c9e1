"""Draws without replacement from any number of tokens; numpy's stop at 10^9, and tables of scipy at 3 10^9."""

# Shapes: C classes (or columns of a table), P rows of a table.

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_MAX_OF_NUMPY = 10**9


def draw_classes(tokens_C: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How many of `size` tokens are of each class, int64 [C], drawn without replacement from `tokens_C` of each."""
    if int(tokens_C.sum()) < _MAX_OF_NUMPY:
        return rng.multivariate_hypergeometric(tokens_C, size, method="marginals")
    drawn_C = np.zeros_like(tokens_C)
    rest = int(tokens_C.sum())
    for number, tokens in enumerate(tokens_C.tolist()):
        rest -= tokens
        drawn_C[number] = hypergeometric(tokens, rest, size, rng)
        size -= int(drawn_C[number])
    return drawn_C


def hypergeometric(good: int, bad: int, size: int, rng: np.random.Generator) -> int:
    """How many of `size` tokens are good, drawn without replacement from so many good and bad ones.

    The tokens take places on a line that are independent and uniform, and the first `size` of them are drawn. The place
    of the k-th good one is a beta variable, the number of bad ones before it binomial given that place, and both sides
    of it are uniform again; with k near what is expected, the side that is still open needs the square root of as many
    draws (the recursion of Devroye, Non-Uniform Random Variate Generation, 1986, X.4, for hypergeometric numbers).
    """
    drawn = 0
    while size > 0 and good > 0 and bad > 0:
        if good + bad < _MAX_OF_NUMPY:
            return drawn + int(rng.hypergeometric(good, bad, size))
        if 2 * size > good + bad:  # what is left behind is the smaller draw
            return drawn + good - hypergeometric(good, bad, good + bad - size, rng)
        k = min(good, 1 + size * good // (good + bad))
        place = rng.beta(k, good - k + 1)
        bad_before = int(rng.binomial(bad, place))
        if k + bad_before <= size:
            drawn, size = drawn + k, size - k - bad_before
            good, bad = good - k, bad - bad_before
        else:
            good, bad = k - 1, bad_before
    return drawn + (min(size, good) if bad == 0 else 0)


def groups_of_rows(
    rows_P: NDArray[np.int64], columns_C: NDArray[np.int64], max_tokens: int, rng: np.random.Generator
) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Groups of consecutive rows of a random table with these sums, and the sums of the columns in each.

    Given these, the rows of a group are a random table of their own. A group holds at most `max_tokens`, or one row,
    whose cells the sums of its columns are.

    Args:
        rows_P: int64 [P], sums of the rows.
        columns_C: int64 [C], sums of the columns, of the same total.
        max_tokens: tokens of a group.
        rng: of the draws; it draws none where all rows are one group.
    """
    left_C, first = columns_C.copy(), 0
    totals_P = np.cumsum(rows_P)
    while first < len(rows_P):
        before = int(totals_P[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(totals_P, before + max_tokens, side="right")))
        if stop == len(rows_P):
            yield slice(first, stop), left_C
            return
        drawn_C = draw_classes(left_C, int(totals_P[stop - 1]) - before, rng)
        left_C = left_C - drawn_C
        yield slice(first, stop), drawn_C
        first = stop
