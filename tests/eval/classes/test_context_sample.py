"""Contexts of tokens against a walk over the sequences, and the sample of them against its definition."""

# Shapes: N tokens, S sequences, M contexts.

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.classes.context_sample import NO_TOKEN, sample_contexts, token_contexts

sequences = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=5)


@given(sequences, st.sampled_from([np.uint16, np.int64, np.uint64]))
def test_contexts_equal_a_walk(rows, dtype):
    expected = []
    for row in rows:
        padded = [NO_TOKEN, *row, NO_TOKEN]
        expected += [padded[place : place + 3] for place in range(len(row))]
    starts_S1 = np.cumsum([0, *map(len, rows)])
    token_ids_N = np.array([token for row in rows for token in row], dtype=dtype)
    assert token_contexts(token_ids_N, starts_S1).tolist() == expected


def test_without_starts_it_is_one_sequence():
    assert token_contexts(np.array([4, 5]), None).tolist() == [[NO_TOKEN, 4, 5], [4, 5, NO_TOKEN]]
    assert token_contexts(np.array([], dtype=np.int64), None).shape == (0, 3)


contexts = st.lists(st.tuples(*[st.integers(-1, 3)] * 3), max_size=40)


def as_array(rows):
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


@given(contexts, st.integers(0, 50), st.data())
def test_the_sample_depends_neither_on_order_nor_on_parts_nor_on_copies(rows, num_contexts, data):
    sample = sample_contexts(as_array(rows), num_contexts).tolist()
    assert len(sample) == len(set(map(tuple, sample))) == min(num_contexts, len(set(rows)))
    assert set(map(tuple, sample)) <= set(rows)
    shuffled = data.draw(st.permutations(rows + rows))
    cut = data.draw(st.integers(0, len(shuffled)))
    parts = [sample_contexts(as_array(part), num_contexts) for part in (shuffled[:cut], shuffled[cut:])]
    assert sample_contexts(np.concatenate(parts), num_contexts).tolist() == sample


def test_each_context_is_as_likely_as_another():
    # 2000 unlike sets of 10 contexts, one sampled from each: the place in the set is uniform
    drawn = Counter()
    for number in range(2000):
        rows = [(number, place, number + place) for place in range(10)]
        drawn[int(sample_contexts(as_array(rows), 1)[0, 1])] += 1
    chi_squared = sum((drawn[place] - 200) ** 2 / 200 for place in range(10))
    assert chi_squared < 21.7  # 99% of a chi-squared distribution with 9 degrees of freedom


@pytest.mark.parametrize(
    ("token_ids", "starts", "message"),
    [
        ([0.5], None, r"token_ids \(float64 \[1\]\) must be integers \[tokens\]"),
        ([[1]], None, r"token_ids \(int64 \[1, 1\]\) must be integers \[tokens\]"),
        ([1, 2], [0, 1], r"starts \(0 to 1\) must rise from 0 to 2"),
        ([1, 2], [1, 2], r"starts \(1 to 2\) must rise from 0 to 2"),
        ([1, 2], [0, 2, 1, 2], r"starts \(0 to 2\) must rise from 0 to 2"),
    ],
)
def test_bad_input_is_named_in_one_line(token_ids, starts, message):
    with pytest.raises(ValueError, match=message):
        token_contexts(np.array(token_ids), starts)
