"""Unions of experts against all choices of samples, planted trees, and the laws of chance."""

# Shapes: M samples, S steps.

import json
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.union_growth import sample_nodes, union_growth


@given(st.integers(0, 10**6), st.data())
def test_the_mean_is_that_of_all_choices_of_samples(random_tree, seed, data):
    tree = random_tree(seed, num_completions=5)
    paths = [tree.path(end)[tree.prompt_length : -1].tolist() for end in tree.completions().tolist()]
    alive = [sum(len(path) > step for path in paths) for step in range(8)]
    if not max(alive):
        return
    counts = sorted(data.draw(st.sets(st.integers(1, max(alive)), min_size=1)))
    found = union_growth(tree, sample_counts=counts, step_starts=[1, 3])
    steps = [step for step in range(8) if alive[step] >= counts[-1]]
    assert (found.num_samples, found.num_steps) == (len(paths), len(steps))

    def union(step, layer, n):
        nodes = [path[step] for path in paths if len(path) > step]
        sets = [set(tree.expert_ids_NLK[node, layer].tolist()) for node in nodes]
        return np.mean([len(set.union(*chosen)) for chosen in combinations(sets, n)])

    expected = np.array([[[union(step, layer, n) for n in counts] for layer in range(2)] for step in steps])
    assert np.array(found.union_of_layer) == pytest.approx(expected.mean(axis=0))
    assert found.union == pytest.approx(expected.mean(axis=(0, 1)))
    for of_bin, inside in zip(found.bins, ([step < 2 for step in steps], [step >= 2 for step in steps]), strict=True):
        assert of_bin.num_steps == sum(inside)
        assert of_bin.union == (pytest.approx(expected[inside].mean(axis=(0, 1))) if any(inside) else None)
    json.dumps(asdict(found), allow_nan=False)


def test_samples_that_agree_touch_k_experts_and_others_all_they_have(plant_tree):
    # Layer 0 agrees; in layer 1 each sample has experts of its own.
    tree = plant_tree([[token] * 3 for token in range(4)], lambda token, *_: [[0, 1], [2 * token, 2 * token + 1]], 8)
    found = union_growth(tree, sample_counts=[1, 2, 4], step_starts=[1])
    assert found.union_of_layer == ((2, 2, 2), (2, 4, 8))
    assert found.union == (2, 3, 5)
    assert found.num_steps == 2
    assert found.union_null_uniform == pytest.approx((2, 8 * (1 - 0.75**2), 8 * (1 - 0.75**4)))
    # Loads: layer 0 has two experts that all take.
    assert found.union_of_layer_null_loads[0] == pytest.approx((2, 2, 2))
    assert found.union_of_layer_null_loads[1] == pytest.approx(found.union_null_uniform)
    assert (found.bins[0].first_step, found.bins[0].last_step, found.bins[0].union) == (1, None, found.union)


def test_independent_samples_tend_to_the_laws(random_tree):
    tree = random_tree(0, num_completions=60, max_length=40, vocab_size=900, num_experts=16, num_experts_per_tok=4)
    found = union_growth(tree, sample_counts=[1, 2, 4, 8, 16], step_starts=[1])
    assert found.union == pytest.approx(found.union_null_loads, rel=0.02)
    assert found.union[-1] < found.union_null_uniform[-1] - 1
    even = random_tree(
        1, num_completions=60, max_length=40, vocab_size=900, num_experts=16, num_experts_per_tok=4, skew=0.0
    )
    found = union_growth(even, sample_counts=[1, 2, 4, 8, 16], step_starts=[1])
    assert found.union == pytest.approx(found.union_null_uniform, rel=0.02)


@given(st.integers(0, 10**6))
def test_the_nodes_of_samples_are_those_of_their_paths(random_tree, seed):
    tree = random_tree(seed)
    node_MS = sample_nodes(tree)
    for end, node_S in zip(tree.completions().tolist(), node_MS.tolist(), strict=True):
        path = tree.path(end)[tree.prompt_length : -1].tolist()
        assert node_S == path + [-1] * (len(node_S) - len(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_counts": []}, r"^sample_counts \(\[\]\) must ascend from 1 or more; "),
        ({"sample_counts": [0, 1]}, r"^sample_counts \(\[0, 1\]\) must ascend from 1 or more; "),
        ({"sample_counts": [2, 2]}, r"^sample_counts \(\[2, 2\]\) must ascend from 1 or more; "),
        (
            {"sample_counts": [1, 3]},
            r"^sample_counts \(3\) must be at most the completions that go on at a step \(2\); ",
        ),
        ({"step_starts": [0, 4]}, r"^step_starts \(\[0, 4\]\) must ascend from 1; "),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(plant_tree, fields, message):
    tree = plant_tree([[1, 2], [3, 4], [5]], lambda *_: [[0]], 2)
    with pytest.raises(ValueError, match=message) as error:
        union_growth(tree, **{"sample_counts": [1, 2], "step_starts": [1]} | fields)
    assert "\n" not in str(error.value)


def test_a_tree_without_completions_is_refused(plant_tree):
    with pytest.raises(ValueError, match=r"^sample_counts \(1\) must be at most .* \(0\); "):
        union_growth(plant_tree([[1]], lambda *_: [[0]], 2, is_cut=(0,)), sample_counts=[1], step_starts=[1])
