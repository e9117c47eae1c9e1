"""Trees of tokens: walks against ones written out node by node, and every field that is refused."""

# Shapes: N nodes, L MoE layers, K experts per token.

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.generation.tree import GenerationTree

# The prompt is 0, 1. Node 1 is a fork to 2 and 3, node 3 to 5 and 6; 4, 7 and 5 end.
PARENTS = [-1, 0, 1, 1, 2, 3, 3, 6]
ENDS = [0, 0, 0, 0, 1, 2, 0, 1]


def fields(parents=PARENTS, ends=ENDS, prompt_length=2):
    num_nodes = len(parents)
    return {
        "num_layers": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 10,
        "prompt_length": prompt_length,
        "parent_N": np.array(parents, dtype=np.int64),
        "token_ids_N": (np.arange(num_nodes) % 10).astype(np.int32),
        "log_probability_N": np.where(np.arange(num_nodes) < prompt_length, 0, -0.5).astype(np.float32),
        "expert_ids_NLK": np.tile(np.array([[3, 1], [0, 2]], dtype=np.uint8), (num_nodes, 1, 1)),
        "has_routing_N": np.array([end != 1 for end in ends]),
        "end_N": np.array(ends, dtype=np.uint8),
        "fork_mass_N": np.full(num_nodes, np.nan, dtype=np.float32),
    }


def tree_of(parents, prompt_length):
    return GenerationTree(**fields(parents, [0] * len(parents), prompt_length))


@st.composite
def trees(draw):
    prompt_length = draw(st.integers(1, 3))
    parents = [*range(-1, prompt_length - 1)]
    for node in range(prompt_length, draw(st.integers(prompt_length, 14))):
        parents.append(draw(st.integers(prompt_length - 1, node - 1)))
    return tree_of(parents, prompt_length)


def walk(tree, node):
    nodes = [node]
    while nodes[0] > 0:
        nodes.insert(0, int(tree.parent_N[nodes[0]]))
    return nodes


def test_a_small_tree_is_read_off():
    tree = GenerationTree(**fields())
    assert tree.num_nodes == 8
    assert tree.depth_N.tolist() == [0, 1, 2, 2, 3, 3, 3, 4]
    assert tree.path(7).tolist() == [0, 1, 3, 6, 7]
    assert tree.completions().tolist() == [4, 7]
    assert tree.leaves().tolist() == [4, 5, 7]
    assert tree.forks().tolist() == [1, 3]
    assert [tree.children(node).tolist() for node in (0, 1, 3, 7)] == [[1], [2, 3], [5, 6], []]
    assert tree.last_common_ancestor([4, 5, 7, 6], [7, 7, 7, 3]).tolist() == [1, 3, 7, 3]
    assert tree.last_common_ancestor(4, 7) == 1


@given(trees())
def test_every_walk_is_that_of_the_parents(tree):
    nodes = range(tree.num_nodes)
    paths = [walk(tree, node) for node in nodes]
    assert [tree.path(node).tolist() for node in nodes] == paths
    assert tree.depth_N.tolist() == [len(path) - 1 for path in paths]
    children = [[child for child in nodes if tree.parent_N[child] == node] for node in nodes]
    assert [tree.children(node).tolist() for node in nodes] == children
    assert tree.leaves().tolist() == [node for node in nodes if not children[node]]
    assert tree.forks().tolist() == [node for node in nodes if len(children[node]) > 1]
    pairs = np.indices((len(paths), len(paths)))
    common = [[max(set(first) & set(second)) for second in paths] for first in paths]
    assert tree.last_common_ancestor(*pairs).tolist() == common


def test_a_prompt_alone_is_a_tree():
    tree = tree_of([-1, 0, 1], 3)
    assert tree.leaves().tolist() == [2]
    assert tree.forks().tolist() == tree.completions().tolist() == []


def with_one(name, node, value):
    array = fields()[name].copy()
    array[node] = value
    return {name: array}


WRONG = [
    ({"num_layers": 0}, "num_layers (0) must be at least 1; "),
    ({"num_experts": 1}, "num_experts_per_tok (2) must be at most num_experts (1); "),
    ({"vocab_size": 0}, "vocab_size (0) must be at least 1; "),
    ({"vocab_size": 7}, "token_ids (7) must be at least 0 and below vocab_size (7); "),
    ({"prompt_length": 0}, "prompt_length (0) must be at least 1 and at most the number of nodes (8); "),
    ({"prompt_length": 9}, "prompt_length (9) must be at least 1 and at most the number of nodes (8); "),
    ({"parent_N": np.array(PARENTS, dtype=np.int32)}, "parent (int32 [8]) must be int64 [8]; "),
    ({"token_ids_N": np.zeros(7, dtype=np.int32)}, "token_ids (int32 [7]) must be int32 [8]; "),
    ({"log_probability_N": np.zeros(8)}, "log_probability (float64 [8]) must be float32 [8]; "),
    ({"has_routing_N": np.zeros(8, dtype=np.uint8)}, "has_routing (uint8 [8]) must be bool [8]; "),
    ({"end_N": np.zeros(8, dtype=np.int64)}, "end (int64 [8]) must be uint8 [8]; "),
    ({"fork_mass_N": np.zeros((8, 1), dtype=np.float32)}, "fork_mass (float32 [8, 1]) must be float32 [8]; "),
    (
        {"expert_ids_NLK": np.zeros((8, 2, 2), dtype=np.int64)},
        "expert_ids (int64 [8, 2, 2]) must be uint8 or uint16 [8, 2, 2]; ",
    ),
    (with_one("parent_N", 0, 0), "parent (0 of node 0) must be the node before it in the prompt, "),
    (with_one("parent_N", 1, -1), "parent (-1 of node 1) must "),
    (with_one("parent_N", 2, 0), "parent (0 of node 2) must "),
    (with_one("parent_N", 4, 4), "parent (4 of node 4) must "),
    (with_one("token_ids_N", 3, -1), "token_ids (-1) must be at least 0 and below vocab_size (10); "),
    (with_one("expert_ids_NLK", 3, 4), "expert_ids (4) must be at least 0 and below num_experts (4); "),
    (with_one("expert_ids_NLK", 3, 1), "expert_ids ([[1, 1], [1, 1]] of node 3) must differ within a layer; "),
    (with_one("has_routing_N", 3, False), "has_routing (False of node 3) must be True of a node with children; "),
    (with_one("end_N", 7, 4), "end (4 of node 7) must be 0, 1, 2 or 3; "),
    (with_one("end_N", 3, 2), "end (2 of node 3) must be 0 in the prompt and where there are children; "),
    (with_one("log_probability_N", 0, -1), "log_probability (-1.0 of node 0) must be finite and at most 0, "),
    (with_one("log_probability_N", 5, 0.5), "log_probability (0.5 of node 5) must be finite and at most 0, "),
    (with_one("log_probability_N", 5, -np.inf), "log_probability (-inf of node 5) must be finite and at most 0, "),
    (with_one("fork_mass_N", 1, 1.5), "fork_mass (1.5 of node 1) must be NaN or between 0 and 1; "),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_field_is_named_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        GenerationTree(**fields() | wrong)
    assert "\n" not in str(error.value)


def test_experts_of_tokens_that_were_not_fed_say_nothing():
    GenerationTree(**fields() | with_one("expert_ids_NLK", 7, 0))


@pytest.mark.parametrize("call", ["path", "children"])
def test_a_node_that_is_not_there_is_refused(call):
    with pytest.raises(ValueError, match=r"^node \(8\) must be at least 0 and below num_nodes \(8\); "):
        getattr(GenerationTree(**fields()), call)(8)
    with pytest.raises(ValueError, match=r"^node \(-1\) must be"):
        GenerationTree(**fields()).last_common_ancestor([3], [-1])
