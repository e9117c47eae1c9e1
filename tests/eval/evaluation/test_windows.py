"""Windows: every token counted once, with the context that max_length and stride allow."""

# Shapes: N tokens of a document, S inputs of a window.

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathmoe.data.packing import IGNORE_INDEX
from pathmoe_eval.evaluation.windows import Window, group_windows, score_windows


@dataclass
class Doc:
    token_ids: NDArray[np.int64]


def docs(lengths: list[int]) -> list[Doc]:
    """Documents whose tokens are all different."""
    ends = np.cumsum(lengths)
    return [Doc(np.arange(end - length, end)) for length, end in zip(lengths, ends, strict=True)]


lengths_and_shape = st.tuples(st.lists(st.integers(0, 25), max_size=5), st.integers(1, 8)).flatmap(
    lambda drawn: st.tuples(st.just(drawn[0]), st.just(drawn[1]), st.integers(1, drawn[1]))
)


@given(lengths_and_shape)
def test_each_token_is_counted_once_and_each_but_the_first_is_a_target_once(
    drawn: tuple[list[int], int, int],
) -> None:
    lengths, max_length, stride = drawn
    documents = docs(lengths)
    counted, targets = [], []
    for window in score_windows(documents, max_length, stride):
        token_ids_N = documents[window.document].token_ids
        assert 1 <= len(window.input_ids_S) == len(window.target_ids_S) <= max_length
        for place, (input_id, target_id) in enumerate(zip(window.input_ids_S, window.target_ids_S, strict=True)):
            position = window.begin + place
            assert input_id == token_ids_N[position]
            if place >= window.num_repeated:
                counted.append((window.document, position))
            if target_id != IGNORE_INDEX:
                assert place >= window.num_repeated and target_id == token_ids_N[position + 1]
                targets.append((window.document, position + 1))
    every = [(number, position) for number, length in enumerate(lengths) for position in range(length)]
    assert counted == every
    assert targets == [(number, position) for number, position in every if position]


@given(lengths_and_shape)
def test_a_token_is_counted_in_the_first_window_that_reaches_it(drawn: tuple[list[int], int, int]) -> None:
    lengths, max_length, stride = drawn
    for window in score_windows(docs(lengths), max_length, stride):
        for position in range(window.begin + window.num_repeated, window.begin + len(window.input_ids_S)):
            begins = [begin for begin in range(0, position + 1, stride) if position < begin + max_length]
            assert window.begin == begins[0]
            # It sees all that is before it, or max_length - stride tokens at least.
            assert window.begin == 0 or position - window.begin >= max_length - stride


def test_what_follows_changes_nothing_before_it() -> None:
    (long,), (short,) = docs([50]), docs([31])
    of_long = {w.begin: w for w in score_windows([long], 8, 3)}
    for window in score_windows([short], 8, 3):
        assert np.array_equal(window.input_ids_S, of_long[window.begin].input_ids_S[: len(window.input_ids_S)])
        assert window.num_repeated == of_long[window.begin].num_repeated


@given(lengths_and_shape, st.integers(1, 4))
def test_groups_hold_every_window_once_in_similar_lengths(
    drawn: tuple[list[int], int, int], windows_per_forward: int
) -> None:
    lengths, max_length, stride = drawn
    windows = list(score_windows(docs(lengths), max_length, stride))

    def key(window: Window) -> tuple[int, int]:
        return window.document, window.begin

    groups = list(group_windows(windows, windows_per_forward))
    assert sorted(map(key, (window for group in groups for window in group))) == sorted(map(key, windows))
    assert [len(group) for group in groups[:-1]] == [windows_per_forward] * (len(groups) - 1)
    sizes = [len(window.input_ids_S) for group in groups for window in group]
    if windows_per_forward == 1:
        assert [key(window) for group in groups for window in group] == list(map(key, windows))
    else:
        assert sizes == sorted(sizes)


def test_settings_that_make_no_windows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--max_length \(0\) must be at least 1; raise it"):
        score_windows(docs([3]), 0, 1)
    with pytest.raises(ValueError, match=r"--stride \(9\) must be at least 1 and at most --max_length \(8\); change"):
        score_windows(docs([3]), 8, 9)
    with pytest.raises(ValueError, match=r"--stride \(0\) must be at least 1"):
        score_windows(docs([3]), 8, 0)
    with pytest.raises(ValueError, match=r"--windows_per_forward \(0\) must be at least 1; raise it"):
        group_windows([], 0)
