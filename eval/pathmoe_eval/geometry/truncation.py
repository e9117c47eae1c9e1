"""States cut to their first singular directions: which of a token's experts need how many of them.

Figure 24 of "The Myth of Expert Specialization" (arXiv 2604.09780): the share of tokens whose m-th ranked expert stays
the same, over the number of directions that are kept. Ranks are those of the logits.
"""

# Shapes: N tokens, D hidden, E experts, K experts per token, V directions.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.moments import SingularDirections
from pathmoe_eval.geometry.router_map import Matrix


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Agreement of ranked experts under truncated states; the figure's exact form is unknown, this is our reading."""

    num_tokens: int
    kept: tuple[int, ...]
    """Numbers of directions."""
    agreement: tuple[tuple[float, ...], ...]
    """For each of them, and each rank from the first, the share of tokens whose expert of that rank is the same."""
    agreement_null: tuple[float, ...]
    """By rank: the share of tokens with its most frequent expert, which is what no direction at all could reach."""


def doublings_to(number: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all."""
    powers = [1 << exponent for exponent in range(number.bit_length()) if 1 << exponent < number]
    return (*powers, number)


def truncation(
    chunks: Iterable[NDArray[np.floating]],
    directions: SingularDirections,
    centred_ED: Matrix,
    bias_E: NDArray[np.float64] | None,
    num_ranks: int,
) -> Truncation:
    """Agreement under truncation, in one pass.

    Args:
        chunks: states [N, D] of the layer.
        directions: of all of them, which are not centred.
        centred_ED: the matrix of a linear router, its rows less their mean.
        bias_E: what it adds to its logits; None for nothing.
        num_ranks: ranks to follow, at most E.

    Raises:
        ValueError: no state.
    """
    kept = doublings_to(len(directions.values_V))
    response_VE = directions.directions_VD @ centred_ED.T
    bias = 0.0 if bias_E is None else bias_E
    agreeing = np.zeros((len(kept), num_ranks), dtype=np.int64)
    of_rank = np.zeros((num_ranks, len(centred_ED)), dtype=np.int64)
    num_tokens = 0
    for states_ND in chunks:
        coordinates_NV = states_ND.astype(np.float64) @ directions.directions_VD.T
        whole_NK = _ranked(states_ND.astype(np.float64) @ centred_ED.T + bias, num_ranks)
        num_tokens += len(whole_NK)
        for rank in range(num_ranks):
            of_rank[rank] += np.bincount(whole_NK[:, rank], minlength=len(centred_ED))
        logits_NE = np.zeros((len(states_ND), len(centred_ED))) + bias
        begin = 0
        for place, end in enumerate(kept):
            logits_NE = logits_NE + coordinates_NV[:, begin:end] @ response_VE[begin:end]
            agreeing[place] += (_ranked(logits_NE, num_ranks) == whole_NK).sum(axis=0)
            begin = end
    if not num_tokens:
        raise ValueError("states (0 tokens) must hold at least 1; pass longer text")
    return Truncation(
        num_tokens=num_tokens,
        kept=kept,
        agreement=tuple(tuple((row / num_tokens).tolist()) for row in agreeing),
        agreement_null=tuple((of_rank.max(axis=1) / num_tokens).tolist()),
    )


def _ranked(logits_NE: NDArray[np.float64], num_ranks: int) -> NDArray[np.int64]:
    return np.argsort(-logits_NE, axis=1, kind="stable")[:, :num_ranks]
