"""Ids that belong to the tokens of a trace beside their own: the next one in the sequence."""

# Shapes: N tokens, S sequences.

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.traces.routing_chunk import RoutingChunk

NO_ID = -1
"""Stands for a position without an id, such as the next token of the last position."""


def with_next_ids(chunks: Iterable[RoutingChunk]) -> Iterator[tuple[RoutingChunk, NDArray[np.int64]]]:
    """Each chunk with the id that follows each of its tokens in its sequence, int64 [tokens]; NO_ID after the last.

    A sequence may go on in the next chunk, which is therefore read before a chunk is given.
    """
    before: RoutingChunk | None = None
    for chunk in chunks:
        if before is not None:
            yield before, _next_ids(before, chunk)
        before = chunk
    if before is not None:
        yield before, _next_ids(before, None)


def _next_ids(chunk: RoutingChunk, following: RoutingChunk | None) -> NDArray[np.int64]:
    next_ids_N = np.full(chunk.num_tokens, NO_ID, dtype=np.int64)
    next_ids_N[:-1] = chunk.token_ids_N[1:]
    next_ids_N[chunk.starts_S1[1:] - 1] = NO_ID
    if following is not None and following.first_position > 0:
        next_ids_N[-1] = following.token_ids_N[0]
    return next_ids_N
