"""Next ids against a loop over sequences, however these are cut into chunks."""

# Shapes: N tokens, S sequences.

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.experts.token_ids import NO_ID, with_next_ids
from pathmoe_eval.traces.routing_chunk import RoutingChunk


def chunks_of(sequences, cuts):
    """The sequences one after the other, cut into chunks at these tokens."""
    tokens_N = np.array([token for sequence in sequences for token in sequence], dtype=np.uint16)
    starts = np.cumsum([0, *map(len, sequences)])
    bounds = sorted({0, len(tokens_N), *(cut for cut in cuts if cut < len(tokens_N))})
    for first, stop in pairwise(bounds):
        inner = starts[(starts > first) & (starts < stop)]
        yield RoutingChunk(
            expert_ids_NLK=np.zeros((stop - first, 1, 1), dtype=np.uint8),
            token_ids_N=tokens_N[first:stop],
            starts_S1=np.array([0, *(inner - first), stop - first]),
            first_position=first - int(starts[starts <= first][-1]),
        )


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=6), st.lists(st.integers(1, 29)))
def test_next_ids_stay_within_their_sequence(sequences, cuts):
    chunks = list(chunks_of(sequences, cuts))
    given_back, next_ids = zip(*with_next_ids(chunks), strict=True) if chunks else ((), ())
    assert list(given_back) == chunks
    expected = [token for sequence in sequences for token in [*sequence[1:], NO_ID]]
    assert [token for next_ids_N in next_ids for token in next_ids_N.tolist()] == expected
