"""Ids that belong to the tokens of a trace: the next one in the sequence, and the same ids in random order."""

# Shapes: N tokens, S sequences.

import numpy as np
from numpy.typing import NDArray

NO_ID = -1
"""Stands for a position without an id, such as the next token of the last position."""


def shuffle_ids(ids_N: NDArray[np.integer], seed: int = 0) -> NDArray[np.integer]:
    """All ids of the data in random order; positions with NO_ID keep it, so that the same positions count."""
    shuffled_N = np.array(ids_N)
    has_id_N = shuffled_N != NO_ID
    shuffled_N[has_id_N] = np.random.default_rng(seed).permutation(shuffled_N[has_id_N])
    return shuffled_N


def next_token_ids(token_ids_N: NDArray[np.integer], starts_S1: NDArray[np.integer]) -> NDArray[np.int64]:
    """The id that follows each token in its sequence, int64 [tokens], NO_ID after the last.

    Args:
        token_ids_N: integers [tokens], input ids of sequences one after the other.
        starts_S1: integers [sequences + 1], where each sequence begins, and the number of tokens.
    """
    next_ids_N = np.full(len(token_ids_N), NO_ID, dtype=np.int64)
    next_ids_N[:-1] = token_ids_N[1:]
    lasts_S = np.asarray(starts_S1)[1:] - 1
    next_ids_N[lasts_S[lasts_S >= 0]] = NO_ID
    return next_ids_N
