"""PathMoE against transformers' OLMoE: same weights in, same logits, loss and gradients out, both ways."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedConfig

from pathmoe import PathMoEConfig, PathMoEForCausalLM, olmoe
from pathmoe.olmoe import from_olmoe, olmoe_config, olmoe_state_dict, pathmoe_config, pathmoe_state_dict, to_olmoe

VOCABULARY, TOLERANCE = 61, 1e-5
OLMOE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "raw-weights": {},
    "normalised-weights": {"norm_topk_prob": True},
    "grouped-queries": {"num_key_value_heads": 2},
    # 0.8 standard deviations, so that the clip acts on many values.
    "clipped": {"clip_qkv": 0.8},
    "tied": {"tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True, "num_key_value_heads": 1},
    "one-expert-of-odd": {"num_experts": 5, "num_experts_per_tok": 1, "intermediate_size": 12},
    "all-experts": {"num_experts": 3, "num_experts_per_tok": 3, "norm_topk_prob": True},
    "other-rotary": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        "rms_norm_eps": 1e-3,
    },
}
PATHMOE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 9,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "layers_per_router": 4,
}


def randomised(model: torch.nn.Module) -> Any:
    """Every weight random, norms and biases too, and routers large enough for uneven routing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if "gate.weight" in name or "routers" in name else 0.15
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def batch(padded: bool) -> dict[str, Tensor]:
    """Token ids and labels [2, 11], with the second row padded on the left if asked for."""
    input_ids = torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(1))
    if not padded:
        return {"input_ids": input_ids, "labels": input_ids}
    mask = torch.ones_like(input_ids)
    mask[1, :4] = 0
    input_ids = input_ids.masked_fill(mask == 0, 0)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids.masked_fill(mask == 0, -100)}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    assert all(parameter.grad is not None for parameter in model.parameters())
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gives_the_logits_loss_and_every_gradient_of_olmoe(
    shape: str, experts: str, attention: str, padded: bool
) -> None:
    config = OlmoeConfig(**OLMOE | SHAPES[shape], attn_implementation=attention, experts_implementation=experts)
    theirs = randomised(OlmoeForCausalLM(config))
    ours = from_olmoe(theirs)
    ours.set_attn_implementation(attention)

    expected, actual = theirs(**batch(padded)), ours(**batch(padded))
    expected.loss.backward()
    actual.loss.backward()

    assert expected.logits.std() > 0.1
    assert_close(actual.logits, expected.logits)
    assert_close(actual.loss, expected.loss)
    expected_gradients = pathmoe_state_dict(gradients(theirs), ours.config)
    assert_close(gradients(ours), expected_gradients)


def test_comes_back_bit_for_bit_as_a_copy() -> None:
    theirs = randomised(OlmoeForCausalLM(OlmoeConfig(**OLMOE))).to(torch.bfloat16)
    theirs.model.norm.float()
    theirs.generation_config.temperature = 0.7
    back = to_olmoe(from_olmoe(theirs))

    before, after = theirs.state_dict(), back.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert not {tensor.data_ptr() for tensor in before.values()} & {tensor.data_ptr() for tensor in after.values()}
    # As from_pretrained would: the frequencies are no weights and stay in fp32.
    fresh = OlmoeForCausalLM(theirs.config)
    assert torch.equal(back.model.rotary_emb.inv_freq, fresh.model.rotary_emb.inv_freq)
    assert back.generation_config.temperature == 0.7
    # OLMoE reads the coefficient only when it returns router logits.
    assert {**back.config.to_dict(), "router_aux_loss_coef": 0.01, "dtype": None} == {
        **theirs.config.to_dict(), "dtype": None
    }  # fmt: skip


def test_keeps_embeddings_tied() -> None:
    tied = from_olmoe(OlmoeForCausalLM(OlmoeConfig(**OLMOE, tie_word_embeddings=True)))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert to_olmoe(tied).lm_head.weight is not tied.lm_head.weight


@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_a_shared_router_is_olmoe_with_the_gate_copied_into_each_layer(norm_topk_prob: bool) -> None:
    ours = randomised(PathMoEForCausalLM(PathMoEConfig(**PATHMOE, norm_topk_prob=norm_topk_prob)))
    theirs = to_olmoe(ours)
    expected, actual = theirs(**batch(padded=True)), ours(**batch(padded=True))
    expected.loss.backward()
    actual.loss.backward()

    assert_close(actual.logits, expected.logits)
    assert_close(actual.loss, expected.loss)
    gates = [layer.mlp.gate for layer in theirs.model.layers]
    blocks = [gates[0:4], gates[4:8], gates[8:9]]
    assert len(ours.model.routers) == len(blocks)
    for router, block in zip(ours.model.routers, blocks, strict=True):
        assert all(torch.equal(gate.weight, router.weight) for gate in block)
        assert_close(router.weight.grad, sum(gate.weight.grad for gate in block))
    others = {name: grad for name, grad in gradients(ours).items() if "routers" not in name}
    assert_close(others, {name: grad for name, grad in gradients(theirs).items() if "gate.weight" not in name})


def test_unrolls_low_rank_corrections() -> None:
    config = PathMoEConfig(**PATHMOE | {"layers_per_router": [5, 4], "router_rank": 3})
    ours = randomised(PathMoEForCausalLM(config))
    theirs = to_olmoe(ours)
    gates = [layer.mlp.gate.weight for layer in theirs.model.layers]
    second = ours.model.routers[1]
    torch.testing.assert_close(gates[7], second.weight + second.low_rank_a[2] @ second.low_rank_b[2])
    assert not torch.equal(gates[7], gates[8])
    assert_close(ours(**batch(padded=False)).logits, theirs(**batch(padded=False)).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_conversion_is_an_ordinary_olmoe_checkpoint(dtype: torch.dtype, tmp_path: Path) -> None:
    ours = randomised(PathMoEForCausalLM(PathMoEConfig(**PATHMOE))).to(dtype).eval()
    theirs = to_olmoe(ours)
    theirs.save_pretrained(tmp_path)
    loaded = OlmoeForCausalLM.from_pretrained(tmp_path)

    assert loaded.dtype == dtype
    with torch.no_grad():
        logits = loaded(**batch(padded=False)).logits
        assert torch.equal(logits, theirs(**batch(padded=False)).logits)
        if dtype == torch.float32:
            assert_close(logits, ours(**batch(padded=False)).logits)
    # The published checkpoints, which serving engines read, hold each expert's matrices apart.
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.layers.8.mlp.gate.weight", "model.layers.0.mlp.experts.7.down_proj.weight"} <= names


def test_drops_what_only_training_reads() -> None:
    training = {
        "router_frozen": True, "router_noise_std": 0.3, "router_z_loss_coef": 0.1, "router_bias_update_rate": 0.1,
        "router_aux_loss_scope": "global_batch",
    }  # fmt: skip
    ours = randomised(PathMoEForCausalLM(PathMoEConfig(**PATHMOE, **training))).eval()
    theirs = to_olmoe(ours)
    assert not theirs.training
    assert all(parameter.requires_grad for parameter in theirs.parameters())
    with torch.no_grad():
        assert_close(theirs(**batch(padded=False)).logits, ours(**batch(padded=False)).logits)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("router_type (cosine)", {"router_type": "cosine"}),
        ("router_type (recurrent)", {"router_type": "recurrent"}),
        ("scoring_func (sigmoid)", {"scoring_func": "sigmoid"}),
        ("router_bias (true)", {"router_bias": True}),
        ("n_shared_experts (2)", {"n_shared_experts": 2}),
        ("first_k_dense_replace (1)", {"first_k_dense_replace": 1}),
        ("layers_per_decision (8)", {"layers_per_decision": 8, "layers_per_router": 8}),
        ("layers_per_decision (null)", {"layers_per_decision": None, "layers_per_router": None}),
        ("routed_scaling_factor (2.5)", {"routed_scaling_factor": 2.5}),
        ("force_uniform_routing (true)", {"force_uniform_routing": True}),
    ],
)
def test_names_what_cannot_be_unrolled(field: str, values: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = PathMoEForCausalLM(PathMoEConfig(**PATHMOE | values))
    with pytest.raises(ValueError) as error:
        to_olmoe(model)
    message = str(error.value)
    assert message.startswith(f"model.config.{field} must ")
    assert message.endswith("; export with --format pathmoe")
    assert "\n" not in message


def test_refuses_a_selection_bias_that_has_moved() -> None:
    model = PathMoEForCausalLM(PathMoEConfig(**PATHMOE, router_bias_update_rate=0.5))
    to_olmoe(model)
    model.model.layers[3].mlp.selection_bias_E[2] = -0.5
    with pytest.raises(ValueError, match=r"^model\.config\.router_bias_update_rate \(0\.5\) must .*layers\.3\.mlp"):
        to_olmoe(model)


@pytest.mark.parametrize(("name", "value"), [("attention_dropout", 0.1), ("hidden_act", "gelu")])
def test_refuses_an_olmoe_that_pathmoe_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} \({value}\) of the OLMoE model must be (0\.0|silu).*; set it"):
        pathmoe_config(OlmoeConfig(**OLMOE | {name: value}))


def test_an_olmoe_that_adds_its_balance_loss_keeps_it() -> None:
    # With one layer, the mean over layers is the pooled loss.
    config = OlmoeConfig(**OLMOE | {"num_hidden_layers": 1, "output_router_logits": True, "router_aux_loss_coef": 0.3})
    theirs = randomised(OlmoeForCausalLM(config))
    ours = from_olmoe(theirs)
    expected, actual = theirs(**batch(padded=True)), ours(**batch(padded=True))
    assert_close(actual.aux_loss, expected.aux_loss)
    assert_close(actual.loss, expected.loss)
    assert_close(actual.router_logits, expected.router_logits)
    assert to_olmoe(ours).config.router_aux_loss_coef == 0.3


def test_every_field_is_carried_unrolled_refused_or_training_only() -> None:
    # A field that is added to PathMoE must be looked at here, or an export would silently lose it.
    unrolled_or_renamed = {"layers_per_router", "router_rank", "moe_intermediate_size"}
    decisions = {"layers_per_decision"}
    of_absent_parts = {"router_dim", "intermediate_size"}
    training_only = {
        "router_frozen", "router_noise_std", "router_aux_loss_scope", "router_z_loss_coef", "router_bias_update_rate",
    }  # fmt: skip
    handled = set(olmoe._SAME_IN_BOTH) | set(olmoe._MUST_BE)
    handled |= unrolled_or_renamed | decisions | of_absent_parts | training_only
    own = {field.name for field in fields(PathMoEConfig)} - {field.name for field in fields(PreTrainedConfig)}
    assert own <= handled
    theirs = {field.name for field in fields(OlmoeConfig)} - {field.name for field in fields(PreTrainedConfig)}
    assert theirs <= set(olmoe._SAME_IN_BOTH) | {"intermediate_size", "attention_dropout", "hidden_act"}


def test_state_dicts_convert_without_a_model() -> None:
    with torch.device("meta"):
        model = PathMoEForCausalLM(PathMoEConfig(**PATHMOE))
        expected = OlmoeForCausalLM(olmoe_config(copy.deepcopy(model.config)))
    converted = olmoe_state_dict(model.state_dict(), model.config)
    shapes = {name: tensor.shape for name, tensor in expected.state_dict().items()}
    assert {name: tensor.shape for name, tensor in converted.items()} == shapes
