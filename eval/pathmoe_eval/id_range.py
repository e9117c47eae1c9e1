"""The checks that all ids pass: of experts, classes, documents and tokens."""

# Shapes: N tokens.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def check_id_range(ids: NDArray[np.integer], limit: int, *, name: str, limit_name: str = "", advice: str) -> None:
    """Raise ValueError unless all ids, integers of any shape, are at least 0 and below `limit`.

    Args:
        ids: the ids; none is fine.
        limit: what they must be below.
        name: what the message calls them.
        limit_name: what it calls the limit, if that has a name.
        advice: what to change.
    """
    lowest, highest = int(ids.min(initial=0)), int(ids.max(initial=0))
    if lowest < 0 or highest >= limit:
        wrong = lowest if lowest < 0 else highest
        bound = f"{limit_name} ({limit})" if limit_name else str(limit)
        raise ValueError(f"{name} ({wrong}) must be at least 0 and below {bound}; {advice}")


def check_one_per_token(ids_N: NDArray[np.integer], num_tokens: int, *, name: str) -> NDArray[np.integer]:
    """`ids_N` as an array; ValueError unless it is integers [num_tokens]."""
    ids_N = np.asarray(ids_N)
    if ids_N.dtype.kind not in "iu" or ids_N.shape != (num_tokens,):
        found = f"{ids_N.dtype} {list(ids_N.shape)}"
        raise ValueError(f"{name} ({found}) must be integers [{num_tokens}]; pass one for each token")
    return ids_N
