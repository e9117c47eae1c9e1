"""Jaccard of nodes against Python sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.node_overlap import NodeOverlap


@given(st.integers(0, 10**6), st.sampled_from([(3, 2), (16, 4), (20, 5), (130, 3)]))
def test_equals_python_sets(random_tree, seed, shape):
    tree = random_tree(seed, num_experts=shape[0], num_experts_per_tok=shape[1])
    nodes = np.flatnonzero(tree.has_routing_N)
    first, second = (grid.ravel() for grid in np.meshgrid(nodes, nodes))
    found = NodeOverlap(tree).jaccard(first, second)
    for layer in range(tree.num_layers):
        sets = [set(row) for row in tree.expert_ids_NLK[:, layer].tolist()]
        expected = [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in zip(first, second, strict=True)]
        assert found[layer] == pytest.approx(expected)


def test_a_node_without_routing_is_refused(plant_tree):
    tree = plant_tree([[1, 2]], lambda *_: [[0, 1]], 4)
    with pytest.raises(ValueError, match=r"^node \(3\) must have routing; "):
        NodeOverlap(tree).jaccard(np.array([1, 2]), np.array([2, 3]))
