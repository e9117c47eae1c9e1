"""Places that are evenly spread."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.even_choice import even_choice


@given(st.integers(0, 500), st.integers(1, 60))
def test_places_are_distinct_ascending_and_as_far_apart_as_they_can_be(number: int, at_most: int) -> None:
    found = even_choice(number, at_most).tolist()
    assert len(found) == min(number, at_most)
    assert found == sorted(set(found)) and set(found) <= set(range(number))
    gaps = {after - before for before, after in itertools.pairwise(found)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, number - 1)


@pytest.mark.parametrize(("number", "at_most", "places"), [(5, 3, [0, 2, 4]), (3, 9, [0, 1, 2]), (9, 1, [0])])
def test_small_cases(number: int, at_most: int, places: list[int]) -> None:
    assert even_choice(number, at_most).tolist() == places
