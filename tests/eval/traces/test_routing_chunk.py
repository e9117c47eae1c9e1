"""Chunks of routing: sequence and position of each token one by one, and arrays that do not fit."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts, S pieces of sequences.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.traces.routing_chunk import RoutingChunk


def make_chunk(starts, **changes):
    num_tokens = starts[-1]
    arrays = {
        "expert_ids_NLK": np.zeros((num_tokens, 3, 2), dtype=np.uint8),
        "token_ids_N": np.zeros(num_tokens, dtype=np.int32),
        "starts_S1": np.array(starts),
    }
    return RoutingChunk(**(arrays | changes))


@given(st.lists(st.integers(1, 5), max_size=5), st.integers(0, 9), st.integers(0, 9))
def test_sequence_and_position_of_each_token(lengths, first_position, first_sequence):
    ids_S = np.arange(len(lengths)) * 2 + first_sequence
    chunk = make_chunk([0, *np.cumsum(lengths)], sequence_ids_S=ids_S, first_position=first_position)
    expected = [
        (int(ids_S[piece]), position + (first_position if piece == 0 else 0))
        for piece, length in enumerate(lengths)
        for position in range(length)
    ]
    found = zip(chunk.sequence_of_token_N().tolist(), chunk.position_of_token_N().tolist(), strict=True)
    assert list(found) == expected
    assert chunk.num_tokens == sum(lengths)


def test_sequences_are_numbered_where_nobody_did():
    assert make_chunk([0, 2, 3]).sequence_ids_S.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_ids_NLK": np.zeros((5, 3), np.uint8)}, r"expert_ids_NLK \(uint8 \[5, 3\]\) must be integers"),
        ({"expert_ids_NLK": np.zeros((5, 3, 2))}, r"expert_ids_NLK \(float64 \[5, 3, 2\]\) must be integers"),
        ({"token_ids_N": np.zeros(4, np.int32)}, r"token_ids_N \(int32 \[4\]\) must be integers \[5\]"),
        ({"weights_NLK": np.zeros((5, 3, 1))}, r"weights_NLK \(float64 \[5, 3, 1\]\) must be floats \[5, 3, 2\]"),
        ({"logits_NLE": np.zeros((5, 2, 8))}, r"logits_NLE \(float64 \[5, 2, 8\]\) must be floats \[5, 3, any\]"),
        ({"predicted_ids_N": np.zeros((5, 1), int)}, r"predicted_ids_N \(int64 \[5, 1\]\) must be integers \[5\]"),
        ({"sequence_ids_S": np.zeros(3, int)}, r"sequence_ids_S \(int64 \[3\]\) must be integers \[2\]"),
        ({"first_position": -1}, r"first_position \(-1\) must be at least 0"),
        ({"starts_S1": np.array([0, 5, 5])}, r"starts_S1 \(int64 \[3\]\) must ascend from 0 .* \(5\)"),
        ({"starts_S1": np.array([1, 5])}, r"starts_S1 \(int64 \[2\]\) must ascend"),
        ({"starts_S1": np.array([0, 4])}, r"starts_S1 \(int64 \[2\]\) must ascend"),
        ({"starts_S1": np.array([0.0, 5.0])}, r"starts_S1 \(float64 \[2\]\) must ascend"),
        ({"starts_S1": np.array([], dtype=int)}, r"starts_S1 \(int64 \[0\]\) must ascend"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        make_chunk([0, 2, 5], **changes)
    assert "\n" not in str(error.value)
