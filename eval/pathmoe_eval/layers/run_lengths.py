"""Runs of consecutive layers in which an expert index is kept: their statistics, and what chance gives.

A window (l, m) of a token and an expert is the m layers from l on, if the token takes the expert in all of them. A run
is a window that no layer before or after extends. A run of r layers holds r - m + 1 windows of m layers, so counts of
windows give the lengths of all runs; and of windows, unlike of runs, chance is a simple product.
"""

# Shapes: L MoE layers, M = L lengths 1, ..., L, B blocks of layers, E experts, C lengths of a run that goes on.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class RunStatistics:
    """Lengths of runs; a tuple has one entry for each length m = 1, ..., L.

    Every pick (token, layer, expert) lies in exactly one run (token, expert, consecutive layers).
    """

    mean_length: float
    """Picks over runs."""
    length_share: tuple[float, ...]
    """Share of runs that are exactly m layers long."""
    run_share: tuple[float, ...]
    """Share of runs that are at least m layers long."""
    pick_share: tuple[float, ...]
    """Share of picks that lie in a run of at least m layers."""


def run_statistics(windows_LM: NDArray[np.int64] | NDArray[np.float64], blocks: Sequence[range]) -> RunStatistics:
    """Statistics of runs that end with their block at the latest.

    Args:
        windows_LM: numbers of windows of m layers (column m - 1) that start at layer l, over all tokens and experts;
            or their expected numbers, which makes every share a ratio of expected numbers.
        blocks: ranges of layers, which together are all of them; one range for runs that end at no block.
    """
    num_layers = len(windows_LM)
    # Two more lengths, of which there are none, so that differences are defined for the last.
    windows_M2 = np.zeros(num_layers + 2, dtype=windows_LM.dtype)
    for block in blocks:
        for length in range(1, len(block) + 1):
            windows_M2[length - 1] += windows_LM[block.start : block.stop - length + 1, length - 1].sum()
    at_least_M1 = windows_M2[:-1] - windows_M2[1:]
    at_least_M, exactly_M = at_least_M1[:-1], at_least_M1[:-1] - at_least_M1[1:]
    # A run of r >= m layers has r picks: m - 1, and one for each length from m to r.
    picks_M = np.arange(num_layers) * at_least_M + windows_M2[:-2]
    return RunStatistics(
        mean_length=float(windows_M2[0] / at_least_M[0]),
        length_share=tuple((exactly_M / at_least_M[0]).tolist()),
        run_share=tuple((at_least_M / at_least_M[0]).tolist()),
        pick_share=tuple((picks_M / windows_M2[0]).tolist()),
    )


def expected_windows(share_LE: NDArray[np.float64]) -> NDArray[np.float64]:
    """Windows per token, [first layer, length - 1], if layers are independent: sums over experts of products of shares.

    Exact whatever the dependence within a layer's set, since the layers of a window are different ones.

    Args:
        share_LE: share of tokens that take each expert in each layer; rows sum to the experts per token.
    """
    num_layers = len(share_LE)
    windows_LM = np.zeros((num_layers, num_layers))
    product_LE = np.ones_like(share_LE)
    for length in range(1, num_layers + 1):
        product_LE = product_LE[: num_layers - length + 1] * share_LE[length - 1 :]
        windows_LM[: len(product_LE), length - 1] = product_LE.sum(axis=1)
    return windows_LM


def longest_run_null(share_LE: NDArray[np.float64], blocks: Sequence[range]) -> NDArray[np.float64]:
    """Probability, for m = 1, ..., L, that independent layers keep one top-1 expert for at least m layers of a block.

    Exact: the expert of a layer and the length of the run that it is in form a Markov chain over the layers.

    Args:
        share_LE: probability of each expert in each layer; rows sum to 1.
        blocks: as in `run_statistics`.
    """
    probability_M = np.zeros(len(share_LE))
    for length in range(1, len(share_LE) + 1):
        for block in blocks:
            # Some run in the blocks so far, or in this one and in none so far: no small probability is taken from 1.
            none_so_far = 1.0 - probability_M[length - 1]
            probability_M[length - 1] += none_so_far * _some_run(share_LE[block.start : block.stop], length)
    return probability_M


def _some_run(share_LE: NDArray[np.float64], length: int) -> float:
    """Probability that some run reaches `length` layers."""
    if length > len(share_LE):
        return 0.0
    if length == 1:
        return 1.0
    reached = 0.0
    state_CE = np.zeros((length - 1, share_LE.shape[1]))
    state_CE[0] = share_LE[0]
    for share_E in share_LE[1:]:
        reached += float(state_CE[-1] @ share_E)
        here_E = state_CE.sum(axis=0)
        state_CE[1:] = state_CE[:-1] * share_E
        state_CE[0] = (here_E.sum() - here_E) * share_E
    return reached
