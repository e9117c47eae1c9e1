"""To and from OLMoE, which PathMoE with linear independent softmax routers is, up to names."""

# Shapes: E experts, D hidden, R rank of a correction.

import copy
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import OlmoeRotaryEmbedding

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM

_SAME_IN_BOTH = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_experts",
    "num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef", "output_router_logits", "max_position_embeddings",
    "rms_norm_eps", "attention_bias", "clip_qkv", "initializer_range", "rope_parameters", "tie_word_embeddings",
    "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip

# Fields that must have this value, as OLMoE has no such thing.
_MUST_BE: dict[str, Any] = {
    "router_type": "linear",
    "router_bias": False,
    "scoring_func": "softmax",
    "routed_scaling_factor": 1.0,
    "n_shared_experts": 0,
    "first_k_dense_replace": 0,
    "force_uniform_routing": False,
}


def from_olmoe(model: OlmoeForCausalLM) -> PathMoEForCausalLM:
    """The PathMoE model with one router per layer that computes what `model` does; its weights are copied.

    Routing runs in fp32 here and in the weights' dtype there, so that they agree in fp32.

    Raises:
        ValueError: dropout in attention or an activation other than SiLU.
    """
    config = pathmoe_config(model.config)
    with torch.device("meta"):
        converted = PathMoEForCausalLM(config)
    _take_over(converted, model, pathmoe_state_dict(model.state_dict(), config))
    return converted


def to_olmoe(model: PathMoEForCausalLM) -> OlmoeForCausalLM:
    """The OLMoE model that computes what `model` does in inference; its weights are copied.

    Shared routers and low-rank corrections are unrolled into a matrix per layer. Freezing, noise, z-loss, and balance
    without a loss are training's and are dropped.

    Raises:
        ValueError: the model has what OLMoE lacks; names the field.
    """
    config = olmoe_config(model.config)
    with torch.device("meta"):
        converted = OlmoeForCausalLM(config)
    _take_over(converted, model, olmoe_state_dict(model.state_dict(), model.config))
    return converted


def pathmoe_config(config: OlmoeConfig) -> PathMoEConfig:
    """The PathMoE configuration of an OLMoE one.

    OLMoE adds its balance loss only where it also returns router logits, so otherwise the coefficient becomes zero.

    Raises:
        ValueError: see `from_olmoe`.
    """
    for name, allowed in (("attention_dropout", 0.0), ("hidden_act", "silu")):
        if getattr(config, name) != allowed:
            raise ValueError(
                f"{name} ({getattr(config, name)}) of the OLMoE model must be {allowed}, all that PathMoE has; "
                "set it in the model's config.json"
            )
    fields = {name: copy.deepcopy(getattr(config, name)) for name in _SAME_IN_BOTH}
    if not config.output_router_logits:
        fields["router_aux_loss_coef"] = 0.0
    return PathMoEConfig(**fields, moe_intermediate_size=config.intermediate_size)


def olmoe_config(config: PathMoEConfig) -> OlmoeConfig:
    """The OLMoE configuration of a PathMoE one.

    Raises:
        ValueError: see `to_olmoe`.
    """
    for name, allowed in _MUST_BE.items():
        if getattr(config, name) != allowed:
            raise ValueError(_refusal(name, getattr(config, name), f"be {allowed}"))
    if len(config.sharing.deciding_layers) < config.num_moe_layers:
        raise ValueError(_refusal("layers_per_decision", config.layers_per_decision, "be 1"))
    fields = {name: copy.deepcopy(getattr(config, name)) for name in _SAME_IN_BOTH}
    return OlmoeConfig(**fields, intermediate_size=config.moe_intermediate_size)


def pathmoe_state_dict(state: Mapping[str, Tensor], config: PathMoEConfig) -> dict[str, Tensor]:
    """OLMoE weights under PathMoE's names."""
    gates = {_gate(layer): f"model.routers.{layer}.weight" for layer in range(config.num_hidden_layers)}
    return {gates.get(name, name): tensor for name, tensor in state.items()}


def olmoe_state_dict(state: Mapping[str, Tensor], config: PathMoEConfig) -> dict[str, Tensor]:
    """PathMoE weights under OLMoE's names, with each layer's router [E, D] of its own, in the dtype of the shared one.

    Raises:
        ValueError: a selection bias that is not zero.
    """
    converted = {}
    for name, tensor in state.items():
        if name.endswith("selection_bias_E"):
            if tensor.any():
                raise ValueError(
                    _refusal("router_bias_update_rate", config.router_bias_update_rate, f"have left {name} at zero")
                )
        elif not name.startswith("model.routers."):
            converted[name] = tensor
    plan = config.sharing
    for layer, (router, slot) in enumerate(zip(plan.router_of_layer, plan.slot_of_layer, strict=True)):
        converted[_gate(layer)] = _unrolled_router(state, f"model.routers.{router}.", slot)
    return converted


def _unrolled_router(state: Mapping[str, Tensor], prefix: str, slot: int) -> Tensor:
    weight_ED = state[f"{prefix}weight"]
    if f"{prefix}low_rank_a" not in state:
        return weight_ED
    a_ER, b_RD = state[f"{prefix}low_rank_a"][slot].float(), state[f"{prefix}low_rank_b"][slot].float()
    return (weight_ED.float() + a_ER @ b_RD).to(weight_ED.dtype)


def _gate(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate.weight"


def _refusal(name: str, value: Any, requirement: str) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return (
        f"model.config.{name} ({shown}) must {requirement} for the OLMoE format, which has nothing else; "
        "export with --format pathmoe"
    )


def _take_over(
    converted: PathMoEForCausalLM | OlmoeForCausalLM,
    model: PathMoEForCausalLM | OlmoeForCausalLM,
    state: Mapping[str, Tensor],
) -> None:
    """Fill a model that was built on the meta device with copies of `state`, and with `model`'s other settings."""
    converted.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    converted.tie_weights()
    # Its buffers are in no state dict.
    rotary_emb = OlmoeRotaryEmbedding(converted.config)  # type: ignore[arg-type]  # reads only what ours has too
    converted.model.rotary_emb = rotary_emb.to(model.device)
    converted.generation_config = copy.deepcopy(model.generation_config)
    converted.train(model.training)
