"""Initial weights: those of the seed whatever was drawn, on the meta device too, each module's its own."""

import pytest
import torch
from torch import nn

from pathmoe.config import PathMoEConfig
from pathmoe.initialization import initialize
from pathmoe.model import PathMoEForCausalLM

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "moe_intermediate_size": 16,
    "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
KINDS = [
    {"layers_per_router": 2, "router_bias_update_rate": 0.1, "router_bias": True},
    {"router_type": "cosine", "router_dim": 8},
    {"router_type": "recurrent", "router_dim": 8},
    {"router_rank": 2, "layers_per_router": None, "n_shared_experts": 1, "first_k_dense_replace": 1},
    {"tie_word_embeddings": True},
]


def drawn(seed: int, **fields) -> PathMoEForCausalLM:
    model = PathMoEForCausalLM(PathMoEConfig(**SHAPE | fields))
    initialize(model, seed)
    return model


@pytest.mark.parametrize("fields", KINDS)
def test_weights_are_a_function_of_the_seed(fields: dict) -> None:
    torch.manual_seed(1)
    first = drawn(3, **fields)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    with torch.device("meta"):
        second = PathMoEForCausalLM(PathMoEConfig(**SHAPE | fields))
    second.to_empty(device="cpu")
    for parameter in second.parameters():
        parameter.data.fill_(float("nan"))
    second.tie_weights()
    initialize(second, 3)
    assert torch.equal(torch.get_rng_state(), before)
    tensors = {**dict(first.named_parameters()), **dict(first.named_buffers())}
    others = {**dict(second.named_parameters()), **dict(second.named_buffers())}
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    other = dict(drawn(4, **fields).named_parameters())
    assert not torch.equal(
        other["model.layers.1.mlp.experts.down_proj"], tensors["model.layers.1.mlp.experts.down_proj"]
    )


@pytest.mark.parametrize("fields", KINDS)
def test_they_are_distributed_as_transformers_draws_them(fields: dict) -> None:
    """The same constants, and Gaussians of the same deviation, as the model is built with."""
    torch.manual_seed(0)
    built = dict(PathMoEForCausalLM(PathMoEConfig(**SHAPE | fields)).named_parameters())
    for name, parameter in drawn(0, **fields).named_parameters():
        theirs = built[name]
        if theirs.numel() == 1 or theirs.std() == 0:
            assert torch.equal(parameter, theirs), name
        else:
            # Of n normal numbers the deviation is known up to 1 / sqrt(2 n).
            assert parameter.std().item() == pytest.approx(theirs.std().item(), rel=6 / (2 * theirs.numel()) ** 0.5)
            assert not torch.equal(parameter, theirs)


def test_no_two_modules_draw_the_same() -> None:
    model = drawn(0)
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    firsts = [tuple(matrix.flatten()[:4].tolist()) for matrix in matrices]
    assert len(set(firsts)) == len(firsts) > 10


def test_a_tied_head_keeps_the_row_of_padding_at_zero() -> None:
    model = drawn(0, tie_word_embeddings=True, pad_token_id=5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight[5].any() and model.lm_head.weight[4].any()


def test_frozen_routers_stay_frozen() -> None:
    model = drawn(0, router_frozen=True)
    assert not any(parameter.requires_grad for parameter in model.model.routers.parameters())
