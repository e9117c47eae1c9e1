"""Rewritten experts against experts whose weights were moved, and against the distribution that they should have."""

# Shapes: N tokens, B batch, S sequence, L MoE layers, E experts, K experts per token.

import numpy as np
import pytest
import torch
from scipy import stats

from pathmoe_eval.perturbations.interventions import index_permutations, permuted_experts, reassigned_experts
from pathmoe_eval.traces.moe_layers import moe_layers
from pathmoe_eval.traces.recorder import RoutingRecorder


def tokens(*shape):
    return torch.randint(2, 40, shape, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits_of(model, input_ids):
    return model(input_ids, use_cache=False).logits


def recorded(model, input_ids):
    with RoutingRecorder(model, weights=True) as recorder:
        logits = logits_of(model, input_ids)
    return recorder.take(), logits


def hooks_of(model):
    """Everything that could have been left on a model."""
    return [
        (name, len(module._forward_pre_hooks), len(module._forward_hooks), "forward" in vars(module))
        for name, module in model.named_modules()
    ]


def random_permutations(model, seed=0):
    layers = moe_layers(model)
    return index_permutations(range(len(layers)), layers[0].num_experts, seed)


def test_the_identity_changes_nothing(build_moe, moe_name):
    model, input_ids = build_moe(moe_name), tokens(2, 7)
    layers = moe_layers(model)
    before = hooks_of(model)
    identity = np.tile(np.arange(layers[0].num_experts), (len(layers), 1))
    with permuted_experts(model, identity):
        permuted = logits_of(model, input_ids)
    assert permuted.equal(logits_of(model, input_ids))
    assert hooks_of(model) == before


@torch.no_grad()
def test_a_permutation_is_experts_moved_the_other_way(build_moe, moe_name):
    model, input_ids = build_moe(moe_name), tokens(2, 7)
    layers, free = moe_layers(model), logits_of(model, input_ids)
    permutations = random_permutations(model)
    with permuted_experts(model, permutations):
        permuted = logits_of(model, input_ids)
    for layer, permutation in zip(layers, permutations, strict=True):
        for parameter in layer.experts.parameters():
            by_expert = parameter.view(6, -1)
            by_expert.copy_(by_expert[torch.from_numpy(permutation)])
    torch.testing.assert_close(permuted, logits_of(model, input_ids), rtol=1e-4, atol=1e-4)
    assert (permuted - free).abs().max() > 0.01


def test_a_recorder_sees_the_experts_that_were_given(build_moe, moe_name):
    model, input_ids = build_moe(moe_name), tokens(1, 9)
    permutations = random_permutations(model)
    free, _ = recorded(model, input_ids)
    with RoutingRecorder(model) as outside, permuted_experts(model, permutations):
        inside, _ = recorded(model, input_ids)
    np.testing.assert_array_equal(inside.expert_ids_NLK, outside.take().expert_ids_NLK)
    # Until the first layer's experts have answered, the model knows nothing of it.
    np.testing.assert_array_equal(inside.expert_ids_NLK[:, 0], permutations[0][free.expert_ids_NLK[:, 0]])
    assert inside.weights_NLK[:, 0].tolist() == free.weights_NLK[:, 0].tolist()


def test_layers_that_share_a_router_share_a_permutation():
    of_blocks = index_permutations([0, 0, 1, 1], 50, seed=3)
    assert (of_blocks[0] == of_blocks[1]).all()
    assert (of_blocks[2] == of_blocks[3]).all()
    assert (of_blocks[0] != of_blocks[2]).any()
    assert (np.sort(of_blocks, axis=1) == np.arange(50)).all()
    assert (of_blocks == index_permutations([0, 0, 1, 1], 50, seed=3)).all()
    assert (of_blocks != index_permutations([0, 0, 1, 1], 50, seed=4)).any()


def test_permutations_are_uniform():
    found = [tuple(index_permutations([0], 3, seed)[0].tolist()) for seed in range(3000)]
    counts = [found.count(order) for order in set(found)]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_one_permutation_for_a_router_of_all_layers_keeps_paths_constant(build_moe):
    # Each router chooses one expert whatever it is given, so that paths are known.
    model, input_ids = build_moe("omni", num_experts_per_tok=1, router_bias=True), tokens(2, 7)
    router = moe_layers(model)[0].router
    with torch.no_grad():
        router.weight.zero_()
        router.bias.copy_(torch.arange(6) == 4)
    labels = [layer.router_index for layer in moe_layers(model)]
    assert labels == [0] * 9
    shared, own = index_permutations(labels, 6, seed=1), random_permutations(model, seed=1)
    for permutations in (shared, own):
        with permuted_experts(model, permutations):
            paths = recorded(model, input_ids)[0].expert_ids_NLK[..., 0]
        assert (paths == permutations[:, 4]).all()
    assert len(set(shared[:, 4].tolist())) == 1 < len(set(own[:, 4].tolist()))


def test_reassigned_experts_are_distinct_uniform_and_independent_of_batching(build_moe, moe_name):
    model, input_ids = build_moe(moe_name), tokens(3, 8)
    free, _ = recorded(model, input_ids)
    with reassigned_experts(model, seed=7):
        together, _ = recorded(model, input_ids)
        alone = [recorded(model, input_ids[row : row + 1, :6])[0] for row in range(3)]
    ids_BSLK = torch.from_numpy(together.expert_ids_NLK).view(3, 8, *together.expert_ids_NLK.shape[1:])
    for row, of_row in enumerate(alone):
        # By ids, since equal weights in another order are sorted in another order.
        assert sorted_ids(ids_BSLK[row, :6].numpy()) == sorted_ids(of_row.expert_ids_NLK)
    assert all(len(set(ids)) == len(ids) for ids in together.expert_ids_NLK.reshape(-1, 2).tolist())
    assert together.weights_NLK[:, 0].tolist() == free.weights_NLK[:, 0].tolist()
    with reassigned_experts(model, seed=8):
        assert (recorded(model, input_ids)[0].expert_ids_NLK != together.expert_ids_NLK).any()


def sorted_ids(ids):
    return np.sort(ids, axis=-1).tolist()


def test_every_set_of_experts_is_as_likely_in_every_layer(build_moe):
    model = build_moe("mono_b8")
    with reassigned_experts(model, seed=0):
        ids_NLK = recorded(model, tokens(4, 500))[0].expert_ids_NLK.astype(int)
    for layer in range(4):
        pairs = np.sort(ids_NLK[:, layer], axis=-1)
        counts = np.bincount(pairs[:, 0] * 6 + pairs[:, 1], minlength=36).reshape(6, 6)
        assert stats.chisquare(counts[np.triu_indices(6, 1)]).pvalue > 1e-3
    # Layers that share a decision do not share what replaces it.
    joint = np.bincount(ids_NLK[:, 0, 0] * 6 + ids_NLK[:, 1, 0], minlength=36).reshape(6, 6)
    assert stats.chi2_contingency(joint).pvalue > 1e-3


def test_nothing_is_left_behind_after_an_error(build_moe):
    model = build_moe("olmoe")
    before = hooks_of(model)
    for intervention in (permuted_experts(model, random_permutations(model)), reassigned_experts(model, 0)):
        with pytest.raises(RuntimeError, match="mid-way"), intervention:
            logits_of(model, tokens(1, 3))
            raise RuntimeError("mid-way")
        assert hooks_of(model) == before
    with pytest.raises(ValueError, match="must be given input_ids"), reassigned_experts(model, 0):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    assert hooks_of(model) == before


@pytest.mark.parametrize(
    "permutations", [[[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 4, 4]] * 3, [[0, 1, 2]] * 3, [[1, 2, 3, 4, 5, 6]] * 3]
)
def test_what_is_no_permutation_of_each_layers_experts_is_refused(build_moe, permutations):
    message = r"^permutations \(.*\) must hold a permutation of each layer's experts \(\[6, 6, 6\]\); make them"
    with (
        pytest.raises(ValueError, match=message),
        permuted_experts(build_moe("olmoe"), np.array(permutations)),
    ):
        pass
