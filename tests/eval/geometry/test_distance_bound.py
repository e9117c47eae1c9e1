"""Proposition 1 on random matrices, and where it is tight."""

# Shapes: N tokens, P pairs, D hidden, E experts.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pathmoe_eval.geometry.distance_bound import distance_bound
from pathmoe_eval.geometry.pairs import TokenPairs, draw_pairs, token_pairs
from pathmoe_eval.geometry.router_map import RouterMap
from tests.eval.geometry.conftest import Layer, layer_of, random_layer

VALUES = st.floats(-100, 100, width=32)


def pairs_of(layer: Layer, num_pairs: int = 30) -> TokenPairs:
    pairs = draw_pairs(len(layer.states_ND), num_pairs, 0)
    return token_pairs(layer.states_ND, layer.logits_NE, layer.expert_ids_NK, layer.router, pairs)


@given(st.data(), st.integers(2, 6), st.integers(1, 6), st.integers(2, 8))
def test_no_pair_violates_it(data: st.DataObject, num_experts: int, size: int, num_tokens: int) -> None:
    layer = layer_of(
        data.draw(arrays(np.float64, (num_tokens, size), elements=VALUES)),
        data.draw(arrays(np.float64, (num_experts, size), elements=VALUES)),
        k=1,
    )
    found = distance_bound(pairs_of(layer), layer.router, rounding=1e-6)
    if found is None:
        assert not len(layer.router.visible_RD)
        return
    assert found.violations_row == found.violations_full == found.violations_below == 0
    assert found.largest_gain >= found.smallest_gain > 0
    assert all(0 <= share <= 1 + 1e-6 for share in (*found.tightness_row, *found.tightness_full))
    if found.tightness_row:
        assert all(row >= full - 1e-9 for row, full in zip(found.tightness_row, found.tightness_full, strict=True))


def test_what_the_row_space_leaves_out_as_rounding_violates_nothing() -> None:
    weight_ED = np.array([[100.0, 0.0], [-100.0, 0.0], [0.0, 1e-5], [0.0, -1e-5]])
    layer = layer_of(np.outer(np.linspace(-100, 100, 6), [0.0, 1.0]), weight_ED)
    found = distance_bound(pairs_of(layer), layer.router, rounding=0.0)
    assert found is not None and len(layer.router.visible_RD) == 1
    assert found.violations_row == found.violations_full == found.violations_below == 0


def test_it_is_reached_along_the_first_singular_direction() -> None:
    layer = random_layer(2, 7, 4, 0)
    _, _, rows = np.linalg.svd(layer.router.centred_ED)
    along = layer_of(np.outer(np.arange(6.0), rows[0]), layer.weight_ED)
    found = distance_bound(pairs_of(along), along.router, rounding=1e-9)
    assert found is not None and found.tightness_full == pytest.approx([1] * 5)
    last = layer_of(np.outer(np.arange(6.0), rows[2]), layer.weight_ED)
    at_least = distance_bound(pairs_of(last), last.router, rounding=1e-9)
    assert at_least is not None
    assert at_least.tightness_row == pytest.approx([at_least.smallest_gain / at_least.largest_gain] * 5)


def test_logits_of_another_router_violate_it() -> None:
    layer = random_layer(20, 7, 4, 0)
    louder = layer._replace(logits_NE=10 * layer.logits_NE)
    found = distance_bound(pairs_of(louder), layer.router, rounding=1e-9)
    assert found is not None and found.violations_row > 15 and found.violations_below == 0
    quieter = layer._replace(logits_NE=0.01 * layer.logits_NE)
    found = distance_bound(pairs_of(quieter), layer.router, rounding=1e-9)
    assert found is not None and found.violations_row == 0 and found.violations_below == found.num_pairs


def test_a_router_that_is_not_linear_has_no_bound() -> None:
    layer = random_layer(5, 4, 3, 0)
    cosine = RouterMap(kind="cosine", centred_ED=layer.router.centred_ED, visible_RD=layer.router.visible_RD)
    assert distance_bound(pairs_of(layer), cosine, rounding=0.0) is None
