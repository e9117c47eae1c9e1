"""The hypergeometric distribution at populations of millions, to near machine precision."""

# Shapes: any that broadcast; I small integers of a table.

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

_TABLE_SIZE = 32


def hypergeometric_pmf(x: ArrayLike, population: int, marked: ArrayLike, drawn: int) -> NDArray[np.float64]:
    """Probability that `drawn` of `population` items, drawn without replacement, hold exactly x of the `marked` ones.

    With M marked of N items, n drawn and ln k! = k ln k - k + r(k), the logarithm of C(M, x) C(N - M, n - x) / C(N, n)
    is r(M) + r(N - M) + r(n) + r(N - n) - r(N) minus the sum over the four cells k of the 2 x 2 table, with means m, of
    r(k) + k ln(k/m) - k + m. No difference of large numbers is left (Loader's saddle-point form of the binomial, 2000,
    for this distribution), where logarithms of factorials would lose eight digits at millions.

    Args:
        x: integers; outside of the support the result is 0.
        population: at least 1.
        marked: integers in [0, population].
        drawn: in [0, population].
    """
    x, marked = np.asarray(x, dtype=np.float64), np.asarray(marked, dtype=np.float64)
    rest, undrawn = population - marked, population - drawn
    cells = (x, marked - x, drawn - x, rest - drawn + x)
    inside = np.all(np.broadcast_arrays(*(cell >= 0 for cell in cells)), axis=0)
    deviation = x - marked * (drawn / population)
    means = [part * (share / population) for part in (marked, rest) for share in (drawn, undrawn)]
    log_pmf = _log_factorial_rest(marked) + _log_factorial_rest(rest)
    log_pmf = log_pmf + float(
        _log_factorial_rest(drawn) + _log_factorial_rest(undrawn) - _log_factorial_rest(population)
    )
    for cell, mean, sign in zip(cells, means, (1, -1, -1, 1), strict=True):
        cell = np.where(inside, cell, 0.0)
        ratio = np.where(mean > 0, np.maximum(sign * deviation / np.where(mean > 0, mean, 1.0), -1.0), 0.0)
        log_pmf = log_pmf - _log_factorial_rest(cell) - (special.xlog1py(cell, ratio) - sign * deviation)
    return np.where(inside, np.exp(np.where(inside, log_pmf, 0.0)), 0.0)


def _log_factorial_rest(k: ArrayLike) -> NDArray[np.float64]:
    """r(k) = ln k! - (k ln k - k) for integers k >= 0: a table, above it Stirling's series (error below 1e-13)."""
    k = np.asarray(k, dtype=np.float64)
    big = np.maximum(k, float(_TABLE_SIZE))
    inverse, square = 1.0 / big, 1.0 / big**2
    series = 0.5 * np.log(2 * math.pi * big) + inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260)))
    return np.where(k < _TABLE_SIZE, _TABLE_I[np.minimum(k, _TABLE_SIZE - 1).astype(np.intp)], series)


def _table() -> NDArray[np.float64]:
    k_I = np.arange(_TABLE_SIZE, dtype=np.float64)
    return special.gammaln(k_I + 1) - (special.xlogy(k_I, k_I) - k_I)


_TABLE_I = _table()
