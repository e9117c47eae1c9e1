"""Consistency is its parts over the same tokens, says what to read first, and is ready for a report."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layers.agreement import adjacent_agreement
from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.layers.engagement import EngagementCounts
from pathmoe_eval.layers.information import layer_information
from pathmoe_eval.layers.joint_counts import JointCounts
from pathmoe_eval.layers.layer_overlap import LayerOverlapCounts
from pathmoe_eval.layers.matching import layer_matching

BLOCKS, INDEPENDENT = (0, 0, 1, 1), (0, 1, 2, 3)


def routing(num_tokens, num_layers=4, num_experts=8, num_picks=3, sameness=1.0, seed=0):
    rng = np.random.default_rng(seed)
    score_NLE = sameness * rng.random((num_tokens, 1, num_experts)) + rng.random((num_tokens, num_layers, num_experts))
    return np.argsort(score_NLE, axis=2)[:, :, :num_picks]


def counts_for(ids_NLK, router_of_layer, num_experts=8):
    _, num_layers, num_picks = ids_NLK.shape
    shape = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": num_picks}
    return ConsistencyCounts(**shape, router_of_layer=router_of_layer)


def consistency(ids_NLK, router_of_layer, num_experts=8):
    counts = counts_for(ids_NLK, router_of_layer, num_experts)
    counts.update(ids_NLK)
    return counts.result()


def test_is_its_parts():
    ids_NLK = routing(300)
    result = consistency(ids_NLK, BLOCKS)
    shape = {"num_layers": 4, "num_experts": 8, "num_experts_per_tok": 3}
    joint, overlap = JointCounts(**shape), LayerOverlapCounts(**shape, router_of_layer=BLOCKS)
    engagement = EngagementCounts(**shape, router_of_layer=BLOCKS)
    for counts in (joint, overlap, engagement):
        counts.update(ids_NLK)
    assert result.num_tokens == 300
    by_itself = vars(adjacent_agreement(ids_NLK[:, :, 0]))
    assert vars(result.agreement).items() <= by_itself.items()
    assert result.information.adjacent_bits == by_itself["mutual_information_bits"]
    assert result.information.adjacent_corrected_bits == by_itself["mutual_information_corrected_bits"]
    assert result.overlap == overlap.result()
    assert result.engagement == engagement.result()
    assert result.information == layer_information(joint, BLOCKS)
    assert result.matching == layer_matching(joint, BLOCKS)
    agreement = result.agreement.agreement
    assert result.agreement_means.adjacent == pytest.approx(result.agreement.mean_agreement)
    assert result.agreement_means.adjacent_within_blocks == pytest.approx((agreement[0] + agreement[2]) / 2)
    assert result.agreement_means.adjacent_across_blocks == pytest.approx(agreement[1])


@given(st.integers(1, 40), st.sampled_from([8, 16, 33, 70]), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, num_tokens, num_experts, data):
    ids_NLK = routing(num_tokens, num_experts=num_experts, seed=num_tokens)
    parts = count_in_parts(lambda: counts_for(ids_NLK, BLOCKS, num_experts), data, ids_NLK)
    assert parts.result() == consistency(ids_NLK, BLOCKS, num_experts)


@pytest.mark.parametrize(
    ("router_of_layer", "leads_with", "why"),
    [
        (INDEPENDENT, "companions", "No two neighbouring layers share a router"),
        (BLOCKS, "indices", "The 4 layers form 2 blocks that each share a router"),
        ((5, 5, 5, 5), "indices", "All layers share one router"),
        ((0, 1, 1, 2), "indices", "The 4 layers form 3 blocks"),
    ],
)
def test_says_what_to_read_first(router_of_layer, leads_with, why):
    result = consistency(routing(20), router_of_layer)
    assert result.leads_with == leads_with
    assert result.why.startswith(why)


def test_relabelling_moves_the_indices_and_leaves_the_companions():
    ids_NLK = routing(2000, sameness=3.0)
    names_LE = [np.random.default_rng(layer).permutation(8) for layer in range(4)]
    relabelled_NLK = np.stack([names_E[ids_NLK[:, layer]] for layer, names_E in enumerate(names_LE)], axis=1)
    ours, theirs = consistency(ids_NLK, BLOCKS), consistency(relabelled_NLK, BLOCKS)
    assert theirs.matching.agreement == ours.matching.agreement
    assert theirs.matching.adjacent_shared == ours.matching.adjacent_shared
    assert theirs.information.adjacent_bits == pytest.approx(ours.information.adjacent_bits)
    assert theirs.agreement.mean_agreement < ours.agreement.mean_agreement - 0.3
    assert theirs.overlap.jaccard_means.adjacent < ours.overlap.jaccard_means.adjacent - 0.3
    four = [result.engagement.all_layers.observed.token_share[3] for result in (ours, theirs)]
    assert four[1] < four[0] - 0.3


def test_layers_that_are_copies_are_fully_consistent():
    result = consistency(np.repeat(routing(200, num_layers=1), 4, axis=1), (0, 0, 0, 0))
    assert (
        result.agreement.agreement
        == result.matching.adjacent_agreement
        == result.matching.adjacent_shared
        == (1.0,) * 3
    )
    assert result.overlap.jaccard == ((1.0,) * 4,) * 4
    assert result.information.normalised_means.within_blocks == pytest.approx(1.0)
    assert result.engagement.within_blocks.observed.token_share == (1.0,) * 4


def test_independent_uniform_layers_tend_to_the_nulls():
    result = consistency(routing(100_000, sameness=0.0), INDEPENDENT)
    assert result.agreement.mean_agreement == pytest.approx(1 / 8, abs=0.003)
    assert result.overlap.jaccard_means.adjacent == pytest.approx(result.overlap.jaccard_null_uniform, abs=0.003)
    assert result.matching.agreement_means.adjacent == pytest.approx(1 / 8, abs=0.005)
    assert result.information.corrected_bits_means.adjacent == pytest.approx(0, abs=1e-4)
    scope = result.engagement.all_layers
    assert scope.observed.token_share == pytest.approx(scope.null_uniform.token_share, abs=0.005)
    assert scope.observed.topk_runs.pick_share == pytest.approx(scope.null_uniform.topk_runs.pick_share, abs=0.005)


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(1, 8), (3, 16), (50, 40)])
def test_goes_into_json_as_it_is(num_tokens, num_experts):
    result = asdict(consistency(routing(num_tokens, num_experts=num_experts), BLOCKS, num_experts))
    text = json.dumps(result, allow_nan=False)
    assert json.dumps(json.loads(text)) == text


def test_one_expert_and_collapsed_layers_have_figures():
    ones = consistency(np.zeros((5, 4, 1), dtype=np.uint8), BLOCKS, num_experts=1)
    assert ones.information.adjacent_normalised == (None,) * 3
    assert ones.matching.adjacent_agreement_null_permuted == ones.overlap.jaccard_null_loads[0][:3] == (1.0,) * 3
    collapsed = routing(50)
    collapsed[:, 1] = [3, 4, 5]
    result = consistency(collapsed, BLOCKS)
    assert result.information.adjacent_bits[:2] == (0.0, 0.0)
    assert result.information.adjacent_bits_null[:2] == (0.0, 0.0)
    assert result.information.normalised_means.adjacent == result.information.adjacent_normalised[2]


GOOD = routing(5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counts_for(GOOD, BLOCKS).result(), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: counts_for(GOOD[:, :1], (0,)), r"num_layers \(1\) must be at least 2"),
        (lambda: counts_for(GOOD, (0, 1)), r"router_of_layer \(2 entries\) must have one for each of num_layers \(4\)"),
        (
            lambda: consistency(GOOD, BLOCKS, num_experts=3),
            r"expert_ids \(\d\) must be at least 0 and below num_experts",
        ),
        (lambda: consistency(GOOD // 4, BLOCKS), r"expert_ids \(.* in layer 0\) must differ within a token"),
        (lambda: counts_for(GOOD, BLOCKS).merge(counts_for(GOOD, INDEPENDENT)), r"other.router_of_layer .* must equal"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
