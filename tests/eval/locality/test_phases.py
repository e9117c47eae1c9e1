"""Phases of generation: a planted tree, and figures written out node by node."""

# Shapes: N nodes.

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.locality.phases import phases


def test_a_planted_tree_has_the_figures_that_follow(plant_tree):
    # The prompt is 0 0 0: expert 0, and 1 beside it. What follows takes 2 and 3, but the first token 1 and 2.
    def experts(_, depth, __):
        return [[0, 1]] if depth < 3 else [[1, 2]] if depth == 3 else [[2, 3]]

    tree = plant_tree([[1, 2, 3, 9], [1, 4, 5, 9]], experts, 6, prompt=(0, 0, 0))
    found = phases(tree)
    prefill, generation, cumulative = found.phases
    assert [phase.phase for phase in found.phases] == ["prefill", "generation", "cumulative"]
    assert [phase.num_tokens for phase in found.phases] == [3, 5, 8]
    assert [phase.distinct_experts for phase in found.phases] == [(2,), (3,), (4,)]
    assert generation.load.counts == ((0, 1, 5, 4, 0, 0),)
    assert [phase.num_neighbours for phase in found.phases] == [2, 4, 7]
    assert prefill.neighbour_jaccard == (1,)
    assert generation.neighbour_jaccard == pytest.approx(((1 / 3 + 1 / 3 + 1 + 1) / 4,))
    assert cumulative.mean_neighbour_jaccard == pytest.approx((2 + 1 / 3 + 1 / 3 + 1 / 3 + 2) / 7)
    assert found.load_overlap == pytest.approx((0.1,))
    assert found.neighbour_jaccard_null_uniform_ratio == 2 / 10
    assert prefill.distinct_experts_null_uniform == pytest.approx(6 * (1 - (2 / 3) ** 3))
    assert prefill.neighbour_jaccard_null_loads_ratio == (1,)


@given(st.integers(0, 10**6))
def test_each_phase_is_counted_node_by_node(random_tree, seed):
    tree = random_tree(seed)
    found = {phase.phase: phase for phase in phases(tree).phases}
    nodes = np.flatnonzero(tree.has_routing_N).tolist()
    of_phase = {
        "prefill": [node for node in nodes if node < 2],
        "generation": [node for node in nodes if node >= 2],
        "cumulative": nodes,
    }
    assert list(found) == [name for name in of_phase if of_phase[name]]
    for name, phase in found.items():
        inside = of_phase[name]
        assert phase.num_tokens == len(inside)
        pairs = [(int(tree.parent_N[node]), node) for node in inside if int(tree.parent_N[node]) in inside]
        assert phase.num_neighbours == len(pairs)
        for layer in range(2):
            sets = [set(row) for row in tree.expert_ids_NLK[:, layer].tolist()]
            assert phase.distinct_experts[layer] == len(set.union(*(sets[node] for node in inside)))
            counts = [sum(expert in sets[node] for node in inside) for expert in range(6)]
            assert phase.load.counts[layer] == tuple(counts)
            mean = sum((count / len(inside)) ** 2 for count in counts)
            assert phase.neighbour_jaccard_null_loads_ratio[layer] == pytest.approx(mean / (4 - mean))
            if pairs:
                expected = np.mean([len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in pairs])
                assert phase.neighbour_jaccard[layer] == pytest.approx(expected)
            else:
                assert phase.neighbour_jaccard is phase.mean_neighbour_jaccard is None


def test_uniform_routing_gives_the_nulls(random_tree):
    tree = random_tree(
        0, num_completions=40, max_length=80, num_layers=4, num_experts=12, num_experts_per_tok=3, skew=0.0
    )
    found = phases(tree)
    cumulative = found.phases[-1]
    assert cumulative.mean_neighbour_jaccard == pytest.approx(found.neighbour_jaccard_null_uniform, rel=0.05)
    ratio = cumulative.mean_neighbour_jaccard_null_loads_ratio
    assert ratio == pytest.approx(found.neighbour_jaccard_null_uniform_ratio, rel=0.05)
    many = [phases(random_tree(seed, num_layers=8, skew=0.0)).load_overlap for seed in range(40)]
    null = phases(random_tree(0, num_layers=8, skew=0.0)).load_overlap_null_uniform
    assert np.mean(many) == pytest.approx(null, abs=0.03)
    json.dumps(asdict(found), allow_nan=False)


def test_a_prompt_alone_has_no_generation(plant_tree):
    found = phases(plant_tree([[1], [2]], lambda *_: [[0]], 2))
    assert [phase.phase for phase in found.phases] == ["prefill", "cumulative"]
    assert found.load_overlap is found.load_overlap_null_uniform is None


def test_a_tree_without_routing_is_refused(plant_tree):
    fields = vars(plant_tree([[1]], lambda *_: [[0]], 2, prompt=(0,)))
    prompt = {
        name: value[:1] if isinstance(value, np.ndarray) else value
        for name, value in fields.items()
        if name in GenerationTree.__dataclass_fields__
    }
    tree = GenerationTree(**prompt | {"has_routing_N": np.zeros(1, dtype=bool)})
    with pytest.raises(ValueError, match=r"^has_routing \(1 nodes\) must be True of a token; "):
        phases(tree)
