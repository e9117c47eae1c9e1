"""Pairs of one token id, and what they are compared with."""

# Shapes: N tokens, P pairs.

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.geometry.pairs import draw_pairs, token_pairs
from pathmoe_eval.geometry.same_token import draw_same_token_pairs, same_token
from tests.eval.geometry.conftest import layer_of, random_layer


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 100))
def test_pairs_are_two_occurrences_of_one_id(ids: list[int], seed: int) -> None:
    found = draw_same_token_pairs(np.array(ids), 40, seed)
    if max(Counter(ids).values()) == 1:
        assert found is None
        return
    assert found is not None
    first_P, second_P = found
    assert len(first_P) == 40 and (first_P != second_P).all()
    assert (np.array(ids)[first_P] == np.array(ids)[second_P]).all()


def test_every_repeated_token_is_as_likely() -> None:
    found = draw_same_token_pairs(np.array([7, 3, 7, 9, 7, 3]), 60_000, 0)
    assert found is not None
    counts = np.zeros((6, 6))
    np.add.at(counts, found, 1)
    assert counts.sum(axis=1) == pytest.approx([12_000] * 3 + [0] + [12_000] * 2, rel=0.05)
    assert counts[0, [2, 4]] == pytest.approx(6000, rel=0.06) and counts[1, 5] == pytest.approx(12_000, rel=0.05)


def test_ids_that_decide_the_state_share_their_experts() -> None:
    rng = np.random.default_rng(0)
    ids_N = rng.integers(5, size=200)
    layer = layer_of(rng.normal(size=(5, 6))[ids_N], rng.normal(size=(8, 6)))
    drawn = draw_same_token_pairs(ids_N, 500, 0)
    assert drawn is not None
    of_one, of_any = (
        token_pairs(layer.states_ND, layer.logits_NE, layer.expert_ids_NK, layer.router, pairs)
        for pairs in (drawn, draw_pairs(200, 500, 0))
    )
    found = same_token(of_one, of_any)
    assert (found.overlap, found.row_distance, found.full_distance) == (1.0, 0.0, 0.0)
    assert found.overlap_any < 0.7 and found.num_pairs == 500


def test_ids_that_say_nothing_are_pairs_like_any() -> None:
    layer = random_layer(400, 6, 8, 0)
    drawn = draw_same_token_pairs(np.random.default_rng(1).integers(5, size=400), 4000, 0)
    assert drawn is not None
    of_one, of_any = (
        token_pairs(layer.states_ND, layer.logits_NE, layer.expert_ids_NK, layer.router, pairs)
        for pairs in (drawn, draw_pairs(400, 4000, 0))
    )
    found = same_token(of_one, of_any)
    assert found.overlap == pytest.approx(found.overlap_any, abs=0.03)
    assert found.row_distance == pytest.approx(1, abs=0.03)
