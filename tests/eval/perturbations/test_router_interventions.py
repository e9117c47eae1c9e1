"""Noise on logits and another k, on real models: against models built with that k, and against what chance gives."""

# Shapes: N tokens, T tokens of one forward, L MoE layers, E experts, K experts per token.

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from pathmoe_eval.perturbations.router_interventions import experts_per_token, noisy_logits
from pathmoe_eval.perturbations.token_draws import draw, prefix_keys, standard_normal
from pathmoe_eval.traces.moe_layers import moe_layers
from pathmoe_eval.traces.recorder import RoutingRecorder


def tokens(*shape):
    return torch.randint(2, 40, shape, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def recorded(model, input_ids):
    with RoutingRecorder(model, weights=True, logits=True) as recorder:
        logits = model(input_ids, use_cache=False).logits
    return recorder.take(), logits


def state_of(model):
    """Everything that could have been left on a model."""
    return [
        (name, len(module._forward_pre_hooks), len(module._forward_hooks), sorted(vars(module)))
        for name, module in model.named_modules()
    ], {
        name: getattr(module, name)
        for module in model.modules()
        for name in ("top_k", "num_experts_per_tok")
        if hasattr(module, name)
    }


def decides(model, layer):
    """Whether a layer makes a decision of its own."""
    if not hasattr(model.config, "sharing"):
        return True
    return model.config.sharing.decider_of_layer[layer] == layer


def test_noise_of_size_zero_changes_nothing(build_moe, moe_name):
    model, input_ids = build_moe(moe_name), tokens(2, 7)
    before = state_of(model)
    free, free_logits = recorded(model, input_ids)
    with noisy_logits(model, [0.0] * len(moe_layers(model)), seed=0):
        found, logits = recorded(model, input_ids)
    assert logits.equal(free_logits)
    np.testing.assert_array_equal(found.expert_ids_NLK, free.expert_ids_NLK)
    assert state_of(model) == before


def test_noise_is_added_to_the_logits_that_the_choice_sees(build_moe, moe_name):
    model, input_ids = build_moe(moe_name), tokens(2, 7)
    layers = moe_layers(model)
    free, _ = recorded(model, input_ids)
    stds = [0.5, *[0.0] * (len(layers) - 1)]
    with noisy_logits(model, stds, seed=3):
        found, _ = recorded(model, input_ids)
    # The first layer is given the same hidden states.
    draws_TE = draw(prefix_keys(input_ids).flatten(), seed=3, layer=0, num_draws=layers[0].num_experts)
    expected = free.logits_NLE[:, 0] + 0.5 * standard_normal(draws_TE).numpy()
    np.testing.assert_allclose(found.logits_NLE[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert (found.expert_ids_NLK[:, 0] != free.expert_ids_NLK[:, 0]).any()


def test_under_huge_noise_the_choice_is_uniform(build_moe, moe_name):
    model = build_moe(moe_name, **{"n_group": 1} if moe_name == "deepseek_v3" else {})
    layers, size = moe_layers(model), 1e4
    if moe_name == "deepseek_v3":
        # The sigmoids of huge logits are 0 or 1, and ties no matter of chance: noise is all there is, but not huge.
        size = 3.0
        for layer in layers:
            nn.init.zeros_(layer.router.weight)
            nn.init.zeros_(layer.router.e_score_correction_bias)
    with noisy_logits(model, [size] * len(layers), seed=1):
        ids_NLK = recorded(model, tokens(2, 400))[0].expert_ids_NLK.astype(int)
    for layer in range(len(layers)):
        counts = np.bincount(ids_NLK[:, layer, 0], minlength=layers[0].num_experts)
        assert stats.chisquare(counts).pvalue > 1e-3
        follows = layer and not decides(model, layer)
        if layer and not follows:
            joint = np.zeros((layers[0].num_experts, layers[0].num_experts))
            np.add.at(joint, (ids_NLK[:, layer - 1, 0], ids_NLK[:, layer, 0]), 1)
            assert stats.chi2_contingency(joint).pvalue > 1e-3
        if follows:
            assert (ids_NLK[:, layer] == ids_NLK[:, layer - 1]).all()


def test_noise_does_not_depend_on_batching(build_moe, moe_name):
    model, input_ids = build_moe(moe_name), tokens(3, 8)
    with noisy_logits(model, [1.0] * len(moe_layers(model)), seed=2):
        _, together = recorded(model, input_ids)
        for row in range(3):
            _, alone = recorded(model, input_ids[row : row + 1, :6])
            torch.testing.assert_close(alone[0], together[row, :6], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_another_k_is_that_of_a_model_built_with_it(build_moe, moe_name, k):
    model, input_ids = build_moe(moe_name), tokens(2, 7)
    before = state_of(model)
    _, free = recorded(model, input_ids)
    fields = {"num_experts_per_tok": k}
    if moe_name == "dbrx":
        ffn = {"hidden_size": 32, "ffn_hidden_size": 8, "moe_num_experts": 6, "moe_top_k": k}
        fields = {"ffn_config": ffn}
    other = build_moe(moe_name, **fields)
    other.load_state_dict(model.state_dict())
    with experts_per_token(model, k):
        found, logits = recorded(model, input_ids)
    expected, expected_logits = recorded(other, input_ids)
    assert found.expert_ids_NLK.shape[2] == k
    np.testing.assert_array_equal(found.expert_ids_NLK, expected.expert_ids_NLK)
    np.testing.assert_array_equal(found.weights_NLK, expected.weights_NLK)
    assert logits.equal(expected_logits)
    assert state_of(model) == before
    assert recorded(model, input_ids)[1].equal(free)


def test_nothing_is_left_behind_after_an_error(build_moe, moe_name):
    model = build_moe(moe_name)
    before = state_of(model)
    for intervention in (noisy_logits(model, [1.0] * len(moe_layers(model)), 0), experts_per_token(model, 1)):
        with pytest.raises(RuntimeError, match="mid-way"), intervention:
            recorded(model, tokens(1, 3))
            raise RuntimeError("mid-way")
        assert state_of(model) == before


def test_a_forward_of_a_routers_own_stays(build_moe):
    model = build_moe("olmoe")
    router = moe_layers(model)[0].router
    own = router.forward
    router.forward = own  # as accelerate's hooks set it
    with noisy_logits(model, [1.0] * 3, seed=0):
        assert router.forward is not own
    assert vars(router)["forward"] is own


class TwoProducts(nn.Module):
    def __init__(self, router):
        super().__init__()
        self.router = router

    def forward(self, x):
        logits, weights, ids = self.router(x)
        return logits + nn.functional.linear(x.flatten(0, -2), self.router.weight), weights, ids


def test_a_router_of_another_formula_is_refused(build_moe):
    model = build_moe("olmoe")
    router = model.model.layers[1].mlp.gate
    router.forward = TwoProducts(type(router)(model.config)).forward
    message = r"router of model.layers.1.mlp.experts \(OlmoeTopKRouter\) must make its 6 logits by one linear .* by 2;"
    with pytest.raises(ValueError, match=message), noisy_logits(model, [1.0] * 3, seed=0):
        model(tokens(1, 3))


@pytest.mark.parametrize("stds", [[], [1.0], [1.0, 1.0, -0.5], [1.0, math.nan, 1.0]])
def test_noise_must_be_given_for_each_layer(build_moe, stds):
    message = r"^std_of_layer \(\[.*\]\) must hold a number of at least 0 for each of the 3 MoE layers; take"
    with pytest.raises(ValueError, match=message), noisy_logits(build_moe("olmoe"), stds, seed=0):
        pass


def test_a_router_that_is_not_declared_takes_no_noise():
    from transformers.models.deepseek_v4 import DeepseekV4Config, DeepseekV4ForCausalLM

    with torch.device("meta"):
        model = DeepseekV4ForCausalLM(DeepseekV4Config(num_hidden_layers=2, mlp_layer_types=["hash_moe", "moe"]))
    with (
        pytest.raises(ValueError, match=r"must declare the router of model.layers.0.mlp.experts to take noise; leave"),
        noisy_logits(model, [1.0] * 2, seed=0),
    ):
        pass


@pytest.mark.parametrize("k", [0, 7])
def test_k_must_be_a_number_of_experts(build_moe, k):
    message = rf"^k \({k}\) must be at least 1 and at most the number of experts \(6\); change it$"
    with pytest.raises(ValueError, match=message), experts_per_token(build_moe("olmoe"), k):
        pass


def test_a_router_that_keeps_its_k_elsewhere_is_refused(build_moe):
    model = build_moe("olmoe")
    router = model.model.layers[2].mlp.gate
    choose = router.forward
    # As if it had read the number when it was built.
    router.forward = lambda x: tuple(part[..., :2] if part.shape[-1] == 3 else part for part in choose(x))
    message = r"^router of model.layers.2.mlp.experts must choose k \(3\) experts, but chose 2; leave k as it is$"
    with pytest.raises(ValueError, match=message), experts_per_token(model, 3):
        model(tokens(1, 3))
