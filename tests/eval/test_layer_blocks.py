"""Blocks of layers and means over layer pairs, written out for small models and against loops over pairs."""

# Shapes: L MoE layers, P pairs of layers.

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layer_blocks import (
    LayerPairMeans,
    check_router_of_layer,
    fixed_blocks,
    layer_blocks,
    layer_pair_means,
    layer_pairs,
    square,
)

ROUTERS = st.lists(st.integers(0, 2), min_size=1, max_size=7)


def mean(values):
    defined = [value for value in values if value is not None]
    return pytest.approx(sum(defined) / len(defined)) if defined else None


@given(ROUTERS)
def test_blocks_are_the_runs_of_equal_routers(router_of_layer):
    groups = [list(group) for _, group in groupby(enumerate(router_of_layer), key=lambda pair: pair[1])]
    assert [list(block) for block in layer_blocks(router_of_layer)] == [[layer for layer, _ in g] for g in groups]


@given(ROUTERS, st.data())
def test_means_are_over_the_pairs_they_name(router_of_layer, data):
    pairs = [(a, b) for a in range(len(router_of_layer)) for b in range(a + 1, len(router_of_layer))]
    assert layer_pairs(len(router_of_layer)) == tuple(pairs)
    values = {pair: data.draw(st.none() | st.floats(-1, 1)) for pair in pairs}
    # a block ends where the router changes, so two layers are in one block if it never does between them
    is_within = {(a, b): len(set(router_of_layer[a : b + 1])) == 1 for a, b in pairs}
    near = {(a, b): value for (a, b), value in values.items() if b == a + 1}
    expected = {
        "adjacent": mean(near.values()),
        "adjacent_within_blocks": mean(value for pair, value in near.items() if is_within[pair]),
        "adjacent_across_blocks": mean(value for pair, value in near.items() if not is_within[pair]),
        "within_blocks": mean(value for pair, value in values.items() if is_within[pair]),
        "across_blocks": mean(value for pair, value in values.items() if not is_within[pair]),
    }
    assert vars(layer_pair_means(list(values.values()), pairs, router_of_layer)) == expected


def test_adjacent_pairs_alone_give_no_means_over_all():
    means = layer_pair_means([0.25, 0.5, 0.75], [(0, 1), (1, 2), (2, 3)], [0, 0, 1, 1])
    assert means == LayerPairMeans(
        adjacent=0.5, adjacent_within_blocks=0.5, adjacent_across_blocks=0.5, within_blocks=None, across_blocks=None
    )


def test_square_is_symmetric():
    assert square([1.0, None, 3.0], [7.0, 8.0, 9.0]) == ((7.0, 1.0, None), (1.0, 8.0, 3.0), (None, 3.0, 9.0))


def test_routers_must_fit():
    assert check_router_of_layer([0, 0, 1], 3) == (0, 0, 1)
    with pytest.raises(
        ValueError, match=r"^router_of_layer \(2 entries\) must have one for each of num_layers \(3\); "
    ):
        check_router_of_layer([0, 1], 3)


@pytest.mark.parametrize(
    ("num_layers", "block_size", "blocks"),
    [(4, 2, (range(2), range(2, 4))), (5, 3, (range(3), range(3, 5))), (2, 9, (range(2),))],
)
def test_fixed_blocks_cover_all_layers(num_layers, block_size, blocks):
    assert fixed_blocks(num_layers, block_size) == blocks


def test_a_block_has_at_least_one_layer():
    with pytest.raises(ValueError, match=r"^block_size \(0\) must be at least 1; "):
        fixed_blocks(4, 0)
