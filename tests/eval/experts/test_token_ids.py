"""Next ids against a loop over sequences, and what shuffling keeps."""

# Shapes: N tokens, S sequences.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.experts.token_ids import NO_ID, next_token_ids, shuffle_ids


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6))
def test_next_ids_stay_within_their_sequence(sequences):
    tokens_N = np.array([token for sequence in sequences for token in sequence], dtype=np.uint16)
    starts_S1 = np.cumsum([0, *map(len, sequences)])
    expected = [token for sequence in sequences if sequence for token in [*sequence[1:], NO_ID]]
    assert next_token_ids(tokens_N, starts_S1).tolist() == expected


@given(st.lists(st.integers(NO_ID, 5)), st.integers(0, 5))
def test_shuffling_keeps_the_ids_and_the_positions_without_one(ids, seed):
    ids_N = np.array(ids, dtype=np.int32)
    shuffled_N = shuffle_ids(ids_N, seed)
    np.testing.assert_array_equal(np.sort(shuffled_N), np.sort(ids_N))
    np.testing.assert_array_equal(shuffled_N == NO_ID, ids_N == NO_ID)
    assert ids_N.tolist() == ids


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_shuffling_is_random_and_repeatable(dtype):
    ids_N = np.arange(200, dtype=dtype)
    assert shuffle_ids(ids_N).tolist() == shuffle_ids(ids_N).tolist() != ids_N.tolist()
    assert shuffle_ids(ids_N, 1).tolist() != shuffle_ids(ids_N, 2).tolist()


def test_every_order_is_equally_likely():
    orders = [tuple(shuffle_ids(np.arange(3), seed)) for seed in range(3000)]
    assert [orders.count(order) for order in sorted(set(orders))] == pytest.approx([500] * 6, abs=110)
