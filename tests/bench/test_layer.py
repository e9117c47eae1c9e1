# Shapes: B batch, S sequence, D hidden, T = B*S tokens.
import pytest
import torch

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.bench.layer import (
    LAYERS,
    busiest_over_mean,
    dense_layer,
    floor_bytes,
    layer_figures,
    layer_shape,
    moe_layer,
)


def shape(**changes: object) -> PathMoEConfig:
    fields = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "layers_per_router": 2,
    }  # fmt: skip
    return PathMoEConfig(**fields | changes)


def test_layers_that_are_compared_have_equal_active_flops() -> None:
    model = PathMoEForCausalLM(shape())
    dense = sum(p.numel() for p in dense_layer(model.config).parameters())
    experts = sum(p.numel() for p in model.model.layers[0].mlp.experts.parameters())
    assert dense == experts * model.config.num_experts_per_tok // model.config.num_experts
    x_BSD = torch.randn(2, 3, model.config.hidden_size)
    layer, parameters = moe_layer(model)
    assert layer(x_BSD).shape == x_BSD.shape
    assert sum(p.numel() for p in parameters) == experts + model.config.num_experts * model.config.hidden_size


def test_balance_is_told_from_collapse() -> None:
    uniform, collapsed = (PathMoEForCausalLM(shape(force_uniform_routing=forced)) for forced in (True, False))
    x_BSD = torch.ones(2, 8, 16)
    assert busiest_over_mean(uniform, x_BSD) == 1
    # Equal hidden states choose the same two experts of four.
    assert busiest_over_mean(collapsed, x_BSD) == 2


def test_the_floor_is_x_the_pre_activation_and_four_numbers_a_row() -> None:
    x, pre_activation, metadata = 5 * 16, 10 * 2 * 8, 10 * 4
    assert floor_bytes(shape(), 5) == 4 * (x + pre_activation + metadata)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_saved_for_backward_is_near_the_floor(name: str) -> None:
    # A sixteenth of the tokens: what is saved grows with them, beside a number an expert.
    figures = layer_figures(LAYERS[name]._replace(length=LAYERS[name].length // 16), rounds=2)
    assert 1 <= figures["saved for backward over the floor, bytes"] <= 1.05
    assert figures["peer's saved for backward over the same"] > 2


def test_a_layer_is_described_in_letters() -> None:
    shape = layer_shape(4096, 128, 64, 16, 2, norm_topk_prob=False)
    assert shape.described() == "T=4096 D=128 F=64 E=16 K=2"
    assert shape.sizes() == (4096, 128, 64, 16, 2)
    assert not shape.config.norm_topk_prob and layer_shape(8, 8, 4, 2, 1).config.norm_topk_prob
