# Shapes: B batch, S sequence, D hidden.
import torch

from pathmoe import PathMoEForCausalLM
from pathmoe.bench.step import dense_layer, moe_layer, tiny_settings, training_step


def small() -> PathMoEForCausalLM:
    config, _, _ = tiny_settings()
    shape = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "moe_intermediate_size": 8}
    return PathMoEForCausalLM(
        type(config)(**config.to_dict() | shape | {"intermediate_size": None, "num_key_value_heads": None})
    )


def test_settings_are_those_of_the_tiny_run() -> None:
    config, blocks, length = tiny_settings()
    assert config.layers_per_router == 4
    assert blocks >= 1 and length >= 64


def test_step_lowers_the_loss_and_leaves_no_gradient() -> None:
    torch.manual_seed(0)
    model = small()
    tokens_BS = torch.randint(0, 40, (2, 12))
    inputs = {"input_ids": tokens_BS, "labels": tokens_BS}
    before = model(**inputs).loss.item()
    step = training_step(model, inputs)
    for _ in range(30):
        step()
    assert model(**inputs).loss.item() < before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_that_are_compared_have_equal_active_flops() -> None:
    model = small()
    config = model.config
    dense = sum(p.numel() for p in dense_layer(config).parameters())
    experts = sum(p.numel() for p in model.model.layers[0].mlp.experts.parameters())
    assert dense == experts * config.num_experts_per_tok // config.num_experts
    x_BSD = torch.randn(2, 3, config.hidden_size)
    assert moe_layer(model)(x_BSD).shape == x_BSD.shape
