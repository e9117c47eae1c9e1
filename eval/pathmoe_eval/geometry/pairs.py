"""Pairs of tokens: the distance of their hidden states, that of their logits, and the experts that they share.

Distances are root mean squares over coordinates (Equation 5 of "The Myth of Expert Specialization", arXiv 2604.09780,
as we read it), of logits after their mean over the experts was taken out, which no softmax sees.
"""

# Shapes: N tokens, P pairs, D hidden, E experts, K experts per token, R dimensions that the router sees.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.router_map import RouterMap

_CELLS_PER_CHUNK = 1 << 22
_ROUNDING = 1e-12
"""Of a squared distance."""

SPACES = ("full", "row", "null")
"""The whole hidden space; the router's row space; what the router does not see."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenPairs:
    """Distances of pairs of tokens in one layer; all arrays have one entry a pair."""

    first_P: NDArray[np.int64]
    second_P: NDArray[np.int64]
    """The pair's tokens, two different ones."""
    distance: dict[str, NDArray[np.float64]]
    """RMS distance of their hidden states in each of `SPACES`; all are divided by the root of the hidden size, so that
    the squares of row and null add up to that of full."""
    logit_distance_P: NDArray[np.float64]
    """RMS distance of their centred router logits."""
    overlap_P: NDArray[np.float64]
    """Share of the chosen experts that both have: Equation 11 for one pair (our reading)."""


def draw_pairs(num_tokens: int, num_pairs: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of different tokens, drawn uniformly and independently: [P] and [P].

    Raises:
        ValueError: fewer than two tokens.
    """
    if num_tokens < 2:
        raise ValueError(f"--data ({num_tokens} tokens) must hold at least 2 tokens; give longer text")
    rng = np.random.default_rng(seed)
    first_P = rng.integers(num_tokens, size=num_pairs)
    second_P = (first_P + rng.integers(1, num_tokens, size=num_pairs)) % num_tokens
    return first_P, second_P


def token_pairs(
    states_ND: NDArray[np.floating],
    logits_NE: NDArray[np.floating],
    expert_ids_NK: NDArray[np.integer],
    router: RouterMap,
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> TokenPairs:
    """Distances and overlap of pairs of tokens.

    Args:
        states_ND: what the router is handed; may lie on disk.
        logits_NE: its logits.
        expert_ids_NK: the chosen experts, distinct within a token.
        router: the layer's.
        pairs: of `draw_pairs`.
    """
    first_P, second_P = pairs
    hidden_size = states_ND.shape[1]
    full_P, row_P, logit_P, overlap_P = (np.empty(len(first_P)) for _ in range(4))
    chunk = max(1, _CELLS_PER_CHUNK // hidden_size)
    for start in range(0, len(first_P), chunk):
        at = slice(start, start + chunk)
        one, other = first_P[at], second_P[at]
        difference_PD = states_ND[one].astype(np.float64) - states_ND[other]
        seen_PR = difference_PD @ router.visible_RD.T
        full_P[at] = (difference_PD**2).sum(axis=1)
        row_P[at] = (seen_PR**2).sum(axis=1)
        logits_PE = logits_NE[one].astype(np.float64) - logits_NE[other]
        logits_PE -= logits_PE.mean(axis=1, keepdims=True)
        logit_P[at] = (logits_PE**2).mean(axis=1)
        is_shared_PKK = expert_ids_NK[one][:, :, None] == expert_ids_NK[other][:, None, :]
        overlap_P[at] = is_shared_PKK.sum(axis=(1, 2)) / expert_ids_NK.shape[1]
    # What rounding leaves of a difference is no distance.
    null_P = np.where(full_P - row_P > _ROUNDING * full_P, full_P - row_P, 0)
    squares = {"full": full_P, "row": np.minimum(row_P, full_P), "null": null_P}
    return TokenPairs(
        first_P=first_P,
        second_P=second_P,
        distance={space: np.sqrt(squares[space] / hidden_size) for space in SPACES},
        logit_distance_P=np.sqrt(logit_P),
        overlap_P=overlap_P,
    )
