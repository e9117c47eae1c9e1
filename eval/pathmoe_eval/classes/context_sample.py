"""Contexts of tokens, and a sample of them that is the same in whatever order they come."""

# Shapes: N tokens, S sequences, M contexts.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO_TOKEN = -1
"""Stands for the neighbour that the first and the last token of a sequence lack."""


def token_contexts(token_ids_N: NDArray[np.integer], starts_S1: NDArray[np.integer] | None) -> NDArray[np.int64]:
    """The token before, the token and the token after, int64 [tokens, 3]; `NO_TOKEN` where the sequence has none.

    Args:
        token_ids_N: integers [tokens].
        starts_S1: integers [sequences + 1], where sequences begin, and the number of tokens; None: one sequence.

    Raises:
        ValueError: wrong shape or dtype of the tokens, or starts that do not cut them into sequences.
    """
    token_ids_N = np.asarray(token_ids_N)
    if token_ids_N.dtype.kind not in "iu" or token_ids_N.ndim != 1:
        found = f"{token_ids_N.dtype} {list(token_ids_N.shape)}"
        raise ValueError(f"token_ids ({found}) must be integers [tokens]; pass one for each token")
    num_tokens = len(token_ids_N)
    starts_S1 = np.array([0, num_tokens] if starts_S1 is None else starts_S1, dtype=np.int64)
    if starts_S1[0] != 0 or starts_S1[-1] != num_tokens or np.any(np.diff(starts_S1) < 0):
        raise ValueError(f"starts ({starts_S1[0]} to {starts_S1[-1]}) must rise from 0 to {num_tokens}; correct them")
    padded = np.full(num_tokens + 2, NO_TOKEN, dtype=np.int64)
    padded[1:-1] = token_ids_N
    contexts_N3 = np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1)
    starts = starts_S1[:-1][np.diff(starts_S1) > 0]
    contexts_N3[starts, 0] = NO_TOKEN
    contexts_N3[starts[1:] - 1, 2] = NO_TOKEN
    return contexts_N3


def sample_contexts(contexts_M3: NDArray[np.int64], num_contexts: int) -> NDArray[np.int64]:
    """At most `num_contexts` of the distinct contexts: those with the lowest hashes, lowest first.

    So each distinct context is as likely as another, and the sample of two samples is that of all they were taken from.
    """
    _, first = np.unique(_hashes(contexts_M3), return_index=True)
    return contexts_M3[first[:num_contexts]]


def _hashes(contexts_M3: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 bits for each row that look random: the finaliser of SplitMix64, applied once for each column."""
    hashes_M = np.zeros(len(contexts_M3), dtype=np.uint64)
    for column_M in contexts_M3.T:
        hashes_M += column_M.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        hashes_M = (hashes_M ^ (hashes_M >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashes_M = (hashes_M ^ (hashes_M >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes_M ^= hashes_M >> np.uint64(31)
    return hashes_M
