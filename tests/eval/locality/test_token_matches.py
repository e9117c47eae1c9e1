"""Other occurrences of a token: who may be drawn, and that all are equally likely."""

# Shapes: A aligned positions.

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.token_matches import draw_matches


def choices(tree, first, second):
    return {
        node
        for node in range(tree.prompt_length, tree.num_nodes)
        if tree.has_routing_N[node]
        and tree.token_ids_N[node] == tree.token_ids_N[second]
        and tree.depth_N[node] not in (tree.depth_N[first], tree.depth_N[second])
    }


@given(st.integers(0, 10**6), st.integers(0, 100))
def test_the_same_token_elsewhere_or_none(random_tree, tree_seed, seed):
    tree = random_tree(tree_seed)
    nodes = np.flatnonzero(tree.has_routing_N)
    first_A, second_A = (grid.ravel() for grid in np.meshgrid(nodes, nodes))
    drawn_A = draw_matches(tree, first_A, second_A, seed)
    for first, second, drawn in zip(first_A.tolist(), second_A.tolist(), drawn_A.tolist(), strict=True):
        allowed = choices(tree, first, second)
        assert (drawn in allowed) if allowed else drawn == -1


def test_all_choices_are_equally_likely(random_tree):
    tree = random_tree(3, num_completions=20)
    nodes = np.flatnonzero(tree.has_routing_N)
    second = int(nodes[-1])
    first = next(node for node in nodes.tolist() if tree.depth_N[node] != tree.depth_N[second] and node > 2)
    allowed = choices(tree, first, second)
    assert len(allowed) > 3
    num_draws = 500 * len(allowed)
    drawn_A = draw_matches(tree, np.full(num_draws, first), np.full(num_draws, second), 0)
    found, counts = np.unique(drawn_A, return_counts=True)
    assert set(found.tolist()) == allowed
    assert np.abs(counts - 500).max() < 5 * 500**0.5
