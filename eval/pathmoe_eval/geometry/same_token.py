"""The same token in other contexts: whether its experts are the same, layer by layer.

"The Myth of Expert Specialization" (arXiv 2604.09780, Figure 4) finds high overlap in the first layer only.
"""

# Shapes: N tokens, P pairs.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.pairs import TokenPairs


@dataclass(frozen=True, kw_only=True)
class SameToken:
    """Pairs of occurrences of one token id beside pairs of any tokens; how the paper counts overlap is our reading."""

    num_pairs: int
    overlap: float
    """Mean share of the chosen experts that both occurrences have."""
    overlap_any: float
    """The same of any two tokens."""
    row_distance: float
    """Mean RMS distance in the router's row space, over that of any two tokens: 1 if the id says nothing."""
    full_distance: float
    """The same in the whole space."""


def draw_same_token_pairs(
    token_ids_N: NDArray[np.integer], num_pairs: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Pairs of two occurrences of one id: a token that is not the only one of its id, then another of them, evenly.

    Returns:
        None where every id occurs once.
    """
    _, id_N, counts = np.unique(token_ids_N, return_inverse=True, return_counts=True)
    order_N = np.argsort(id_N, kind="stable")
    starts = np.cumsum(counts) - counts
    repeated_N = np.flatnonzero(counts[id_N] > 1)
    if not len(repeated_N):
        return None
    rng = np.random.default_rng(seed)
    first_P = repeated_N[rng.integers(len(repeated_N), size=num_pairs)]
    place_N = np.empty(len(order_N), dtype=np.int64)
    place_N[order_N] = np.arange(len(order_N))
    start_P, count_P = starts[id_N[first_P]], counts[id_N[first_P]]
    place_P = (place_N[first_P] - start_P + rng.integers(1, count_P)) % count_P
    return first_P, order_N[start_P + place_P]


def same_token(pairs: TokenPairs, any_pairs: TokenPairs) -> SameToken:
    """Compare pairs of one id with any pairs.

    Args:
        pairs: of `draw_same_token_pairs`.
        any_pairs: of `draw_pairs`, whose tokens are not all alike.
    """

    def relative(space: str) -> float:
        return float(pairs.distance[space].mean() / any_pairs.distance[space].mean())

    return SameToken(
        num_pairs=len(pairs.first_P),
        overlap=float(pairs.overlap_P.mean()),
        overlap_any=float(any_pairs.overlap_P.mean()),
        row_distance=relative("row"),
        full_distance=relative("full"),
    )
