"""Which layers are found in models of random or no weights, and which models are refused."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.llama4 import Llama4ForCausalLM, Llama4TextConfig
from transformers.models.olmoe import OlmoeConfig, OlmoeForCausalLM
from transformers.models.qwen3_5_moe import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe_eval.traces.moe_layers import decoder_of, moe_layers


def ours(**fields):
    shape = {"hidden_size": 16, "num_hidden_layers": 7, "num_attention_heads": 2, "num_experts": 4, "vocab_size": 20}
    return PathMoEForCausalLM(PathMoEConfig(**shape | {"moe_intermediate_size": 8, "num_experts_per_tok": 2} | fields))


def olmoe(**fields):
    shape = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "num_experts": 4, "vocab_size": 20}
    return OlmoeForCausalLM(OlmoeConfig(**shape | {"intermediate_size": 8} | fields))


def weightless(family, auto=AutoModelForCausalLM, **fields) -> PreTrainedModel:
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(family, **fields))


def test_layers_are_in_order_of_depth():
    model = olmoe()
    layers = moe_layers(model)
    assert [layer.name for layer in layers] == [f"model.layers.{index}.mlp.experts" for index in range(12)]
    for index, layer in enumerate(layers):
        block = model.model.layers[index].mlp
        assert (layer.block, layer.experts, layer.router) == (block, block.experts, block.gate)
        assert (layer.num_experts, layer.router_index, layer.logits_index) == (4, index, 0)
    assert decoder_of(model, layers) is model.model


@pytest.mark.parametrize(
    ("fields", "router_of_layer"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"layers_per_router": 4}, [0, 0, 0, 0, 1, 1, 1]),
        ({"layers_per_router": None, "router_rank": 2}, [0] * 7),
        ({"layers_per_router": [2, 3], "first_k_dense_replace": 2, "intermediate_size": 8}, [0, 0, 1, 1, 1]),
        # The second block of two layers lies in both router blocks; the first of them decides.
        ({"layers_per_router": 3, "layers_per_decision": 2}, [0, 0, 0, 0, 1, 1, 2]),
    ],
)
def test_our_layers_have_the_router_that_decides_for_them(fields, router_of_layer):
    model = ours(**fields)
    layers = moe_layers(model)
    assert [layer.router_index for layer in layers] == router_of_layer
    assert all(layer.router is model.model.routers[layer.router_index] for layer in layers)
    dense = 7 - len(layers)
    assert [layer.experts for layer in layers] == [layer.mlp.experts for layer in model.model.layers[dense:]]
    assert decoder_of(model, layers) is model.model


def test_the_text_model_of_a_multimodal_one_is_found():
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_experts": 4, "moe_intermediate_size": 8, "vocab_size": 20}
    with torch.device("meta"):
        model = Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=text, vision_config={"depth": 1}))
    layers = moe_layers(model)
    assert [layer.name for layer in layers] == [f"model.language_model.layers.{i}.mlp.experts" for i in range(2)]
    assert decoder_of(model, layers) is model.model.language_model


def test_a_wrapped_model_is_seen_through():
    model = olmoe()
    layers = moe_layers(nn.ModuleDict({"module": model}))
    assert layers[0].name == "module.model.layers.0.mlp.experts"
    assert [layer.experts for layer in layers] == [layer.experts for layer in moe_layers(model)]
    assert decoder_of(nn.ModuleDict({"module": model}), layers) is model.model


def test_a_layer_whose_router_is_not_the_declared_one_has_none():
    model = weightless("deepseek_v4", num_hidden_layers=2, mlp_layer_types=["hash_moe", "moe"])
    looks_up, chooses = moe_layers(model)
    assert looks_up.router is None
    assert chooses.router is chooses.block.gate


@pytest.mark.parametrize("family", ["ernie4_5_moe", "glm4_moe", "jamba", "minimax_m2", "phimoe"])
def test_families_beside_those_that_are_recorded_in_other_tests(family):
    layers = moe_layers(weightless(family))
    assert layers
    for layer in layers:
        assert layer.router is not None
        assert layer.router.weight.shape[0] == layer.num_experts


def llama4():
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    return Llama4ForCausalLM(Llama4TextConfig(**small, intermediate_size=8, intermediate_size_mlp=8, vocab_size=20))


def sharded():
    model = olmoe()
    model.model.layers[1].mlp.experts._is_expert_parallel = True  # what transformers' expert parallelism sets
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(2, 2), r"model \(Linear\) must have routers"),
        (lambda: weightless("llama", num_hidden_layers=1), r"model \(LlamaForCausalLM\) must have routers"),
        (
            lambda: ours(first_k_dense_replace=0).model.layers,
            r"model \(ModuleList\) must have its MoE layers in one transformers model",
        ),
        (llama4, r"must hand hidden_states, top_k_index, top_k_weights to .* model.layers.0.feed_forward.router"),
        (lambda: weightless("jetmoe", num_hidden_layers=1), r"\(JetMoeTopKGating\) decides is used otherwise"),
        (
            lambda: weightless("switch_transformers", AutoModelForSeq2SeqLM),
            r"\(SwitchTransformersTop1Router\) decides is used otherwise",
        ),
        (sharded, r"and model.layers.1.mlp.experts is sharded; load it without expert parallelism"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line(build, message):
    model = build()
    with pytest.raises(ValueError, match=message) as error:
        decoder_of(model, moe_layers(model))
    assert "\n" not in str(error.value)
