"""Matched overlap of layers against all relabellings of a few experts, closed forms, and invariances."""

# Shapes: N tokens, L MoE layers, P pairs of layers, E experts, K experts per token.

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layer_blocks import layer_pair_means, layer_pairs
from pathmoe_eval.layers import joint_counts
from pathmoe_eval.layers.joint_counts import JointCounts
from pathmoe_eval.layers.matching import best_matching, layer_matching


def matching(ids_NLK, num_experts, router_of_layer=None):
    _, num_layers, num_picks = ids_NLK.shape
    counts = JointCounts(num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_picks)
    counts.update(ids_NLK)
    return layer_matching(counts, router_of_layer or range(num_layers))


@st.composite
def routings(draw):
    num_experts = draw(st.integers(1, 5))
    num_picks = draw(st.integers(1, num_experts))
    shape = (draw(st.integers(1, 12)), draw(st.integers(2, 4)), num_experts)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score_NLE = rng.random((shape[0], 1, num_experts)) + rng.random(shape)
    return np.argsort(score_NLE, axis=2)[:, :, :num_picks], num_experts


def best(first, second, num_experts):
    """Most picks in common, over tokens, under any relabelling of the second layer's experts."""
    return max(
        sum(len(set(a) & {names[e] for e in b}) for a, b in zip(first, second, strict=True))
        for names in permutations(range(num_experts))
    )


def best_expected(first, second, num_experts):
    """The same where every token of one layer meets every token of the other, per pair of tokens."""
    pairs = [(a, b) for a in first for b in second]
    return best(*zip(*pairs, strict=True), num_experts) / len(pairs)


@given(routings(), st.booleans())
def test_equals_brute_force(case, only_adjacent):
    ids_NLK, num_experts = case
    n, num_layers, k = ids_NLK.shape
    router_of_layer = tuple(layer // 2 for layer in range(num_layers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_counts, "_MAX_CELLS", 0 if only_adjacent else 1 << 25)
        result = matching(ids_NLK, num_experts, router_of_layer)
    sets = ids_NLK.transpose(1, 0, 2).tolist()
    top1 = ids_NLK[:, :, :1].transpose(1, 0, 2).tolist()
    near = [(layer, layer + 1) for layer in range(num_layers - 1)]
    has_all = num_layers == 2 or not only_adjacent
    pairs = layer_pairs(num_layers) if has_all else near
    agreement = {(a, b): best(top1[a], top1[b], num_experts) / n for a, b in pairs}
    assert result.num_tokens == n
    assert result.adjacent_agreement == tuple(agreement[pair] for pair in near)
    assert result.adjacent_shared == pytest.approx([best(sets[a], sets[b], num_experts) / (n * k) for a, b in near])
    expected = [best_expected(top1[a], top1[b], num_experts) for a, b in near]
    assert result.adjacent_agreement_null_loads == pytest.approx(expected)
    expected = [best_expected(sets[a], sets[b], num_experts) / k for a, b in near]
    assert result.adjacent_shared_null == pytest.approx(expected)
    if has_all:
        of_pair = agreement | {(b, a): value for (a, b), value in agreement.items()}
        layers = range(num_layers)
        assert result.agreement == tuple(tuple(of_pair.get((a, b), 1.0) for b in layers) for a in layers)
    else:
        assert result.agreement is None
    assert result.agreement_means == layer_pair_means(list(agreement.values()), pairs, router_of_layer)


@given(routings(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_per_layer_changes_nothing(case, seed):
    ids_NLK, num_experts = case
    rng = np.random.default_rng(seed)
    relabelled_LNK = [rng.permutation(num_experts)[ids_NK] for ids_NK in ids_NLK.transpose(1, 0, 2)]
    ours, theirs = matching(*case), matching(np.stack(relabelled_LNK, axis=1), num_experts)
    assert theirs.agreement == ours.agreement
    assert theirs.adjacent_shared == ours.adjacent_shared
    assert theirs.adjacent_agreement_null_permuted == ours.adjacent_agreement_null_permuted
    assert theirs.adjacent_agreement_null_permuted_highest == ours.adjacent_agreement_null_permuted_highest
    assert theirs.adjacent_agreement_null_loads == pytest.approx(ours.adjacent_agreement_null_loads)


@given(routings())
def test_duplicated_tokens_change_no_share(case):
    ids_NLK, num_experts = case
    once, twice = matching(*case), matching(np.repeat(ids_NLK, 2, axis=0), num_experts)
    assert twice.agreement == once.agreement
    assert twice.adjacent_shared == once.adjacent_shared


def test_relabelled_copies_match_fully():
    ids_NK = np.argsort(np.random.default_rng(0).random((400, 10)), axis=1)[:, :3]
    names_LE = [np.random.default_rng(layer).permutation(10) for layer in range(4)]
    result = matching(np.stack([names_E[ids_NK] for names_E in names_LE], axis=1), 10)
    assert result.adjacent_agreement == result.adjacent_shared == (1.0, 1.0, 1.0)
    assert result.agreement_means.across_blocks == 1.0


def test_a_matching_fitted_to_noise_is_above_the_expected_table_and_nears_it():
    gumbel_NLE = np.random.default_rng(1).gumbel(size=(100_000, 2, 8)) + np.linspace(0, 1, 8)
    path_ids_NLK = gumbel_NLE.argmax(axis=2)[:, :, None]
    fitted = []
    for num_tokens in (500, 100_000):
        result = matching(path_ids_NLK[:num_tokens], 8)
        observed, null = result.adjacent_agreement[0], result.adjacent_agreement_null_permuted[0]
        assert observed == pytest.approx(null, rel=0.1)
        assert result.adjacent_agreement_null_permuted_highest[0] >= null
        fitted.append(null - result.adjacent_agreement_null_loads[0])
    assert 0 < fitted[1] < fitted[0] / 5


def test_the_best_matching_is_of_counts_that_floats_tell_apart():
    joint_EE = np.array([[2**52, 0], [0, 1]])
    assert best_matching(joint_EE) == 2**52 + 1


def test_bad_input_is_named_in_one_line():
    counts = JointCounts(num_layers=2, num_experts=4, num_experts_per_tok=1)
    with pytest.raises(ValueError, match=r"^num_tokens \(0\) must be at least 1; "):
        layer_matching(counts, (0, 1))
    with pytest.raises(
        ValueError, match=r"^router_of_layer \(3 entries\) must have one for each of num_layers \(2\); "
    ):
        layer_matching(counts, (0, 1, 2))
