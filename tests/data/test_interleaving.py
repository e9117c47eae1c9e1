from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.interleaving import interleave, mixed_block_indices, positions_of_sources
from pathmoe.data.order import block_indices

WEIGHTS = st.lists(st.floats(0.001, 100.0), min_size=1, max_size=12)
MOST_OFF = 1.68


@given(weights=WEIGHTS, start=st.integers(0, 10**9))
def test_every_stretch_has_the_shares_of_the_weights(weights: list[float], start: int) -> None:
    positions = np.arange(start, start + 600)
    sources, places = interleave(positions, weights)
    shares = np.array(weights) / sum(weights)
    so_far = np.array(positions_of_sources(start, weights))
    assert so_far.sum() == start
    for number, (source, place) in enumerate(zip(sources, places, strict=True)):
        assert place == so_far[source], "places of a source are its positions counted"
        so_far[source] += 1
        # The weights themselves are rounded to 2^-28 of their sum.
        off = np.abs(so_far - shares * (start + number + 1))
        assert (off < MOST_OFF + 2.0**-28 * (start + number + 1) * len(weights)).all()


def counted(n: int, weights: list[int]) -> list[int]:
    """The definition for four sources of ascending weights, a tree of two levels, in exact arithmetic."""
    a, b, c, d = weights
    first = int(Fraction(a + b, sum(weights)) * n + Fraction(1, 2))
    of_a = int(Fraction(a, a + b) * first + Fraction(1, 2))
    of_c = int(Fraction(c, c + d) * (n - first) + Fraction(1, 2))
    return [of_a, first - of_a, of_c, n - first - of_c]


def test_positions_are_those_of_the_definition() -> None:
    weights = [3, 4, 5, 6]
    number = 2000
    sources, places = interleave(np.arange(number), [float(weight) for weight in weights])
    for position in range(number):
        before, after = counted(position, weights), counted(position + 1, weights)
        (source,) = [s for s in range(4) if after[s] > before[s]]
        assert (sources[position], places[position]) == (source, before[source])
    assert positions_of_sources(number, [3.0, 4.0, 5.0, 6.0]) == counted(number, weights)


def test_positions_stand_for_themselves() -> None:
    weights = [0.5, 0.2, 0.3]
    whole = interleave(np.arange(1000), weights)
    some = np.array([999, 3, 500, 3])
    assert all(
        np.array_equal(ours[some], theirs) for ours, theirs in zip(whole, interleave(some, weights), strict=True)
    )


def test_equal_weights_take_turns() -> None:
    sources, _ = interleave(np.arange(400), [1.0, 1.0, 1.0, 1.0])
    assert all(sorted(turn) == [0, 1, 2, 3] for turn in sources.reshape(-1, 4).tolist())


def test_a_trillion_tokens_do_not_overflow() -> None:
    positions = np.array([2**33, 2**33 + 1])
    sources, places = interleave(positions, [1e-9, 0.7, 0.3])
    assert (places >= 0).all() and set(sources) <= {1, 2}
    numbers = positions_of_sources(2**33, [1e-9, 0.7, 0.3])
    assert sum(numbers) == 2**33 and numbers[1] == pytest.approx(0.7 * 2**33, rel=1e-7)


def test_each_source_is_in_its_own_order_and_begins_again_when_it_is_through() -> None:
    blocks, weights = [5, 40], [0.25, 0.75]
    indices = mixed_block_indices(np.arange(80), blocks, weights, seed=3)
    first, second = indices[indices < 5], indices[indices >= 5] - 5
    assert (len(first), len(second)) == (20, 60)
    for found, num_blocks in ((first, 5), (second, 40)):
        assert found.tolist() == block_indices(np.arange(len(found)), num_blocks, seed=3).tolist()
    assert sorted(second[:40]) == list(range(40))


def test_one_source_is_read_as_without_a_mixture() -> None:
    positions = np.arange(100)
    assert np.array_equal(mixed_block_indices(positions, [37], [2.5], seed=1), block_indices(positions, 37, seed=1))
