"""Which settings a checkpoint allows to change: none that change its parameters or what a forward computes."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.compatibility import check_architecture

SHAPE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "layers_per_router": 2,
    "initializer_range": 0.3,
}

# Another value for every field of the configuration that is about the model; what goes with it where it needs that.
CHANGES: dict[str, dict[str, Any]] = {
    "vocab_size": {"vocab_size": 25},
    "hidden_size": {"hidden_size": 24},
    "num_hidden_layers": {"num_hidden_layers": 5},
    "num_attention_heads": {"num_attention_heads": 2},
    "num_key_value_heads": {"num_key_value_heads": 2},
    "intermediate_size": {"intermediate_size": 9, "first_k_dense_replace": 1},
    "moe_intermediate_size": {"moe_intermediate_size": 9},
    "num_experts": {"num_experts": 5},
    "num_experts_per_tok": {"num_experts_per_tok": 3},
    "n_shared_experts": {"n_shared_experts": 1},
    "first_k_dense_replace": {"first_k_dense_replace": 1},
    "layers_per_router": {"layers_per_router": [1, 3]},
    "layers_per_decision": {"layers_per_decision": 2},
    "router_type": {"router_type": "cosine"},
    "router_rank": {"router_rank": 2},
    "router_dim": {"router_dim": 5, "router_type": "recurrent"},
    "router_bias": {"router_bias": True},
    "router_frozen": {"router_frozen": True},
    "scoring_func": {"scoring_func": "sigmoid"},
    "norm_topk_prob": {"norm_topk_prob": False},
    "routed_scaling_factor": {"routed_scaling_factor": 2.0},
    "router_noise_std": {"router_noise_std": 0.5},
    "router_aux_loss_coef": {"router_aux_loss_coef": 0.5},
    "router_aux_loss_scope": {"router_aux_loss_scope": "global_batch"},
    "router_z_loss_coef": {"router_z_loss_coef": 0.5},
    "router_bias_update_rate": {"router_bias_update_rate": 0.5},
    "force_uniform_routing": {"force_uniform_routing": True},
    "max_position_embeddings": {"max_position_embeddings": 100},
    "rms_norm_eps": {"rms_norm_eps": 0.5},
    "attention_bias": {"attention_bias": True},
    "clip_qkv": {"clip_qkv": 0.1},
    "initializer_range": {"initializer_range": 0.1},
    "rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}},
    "tie_word_embeddings": {"tie_word_embeddings": True},
    "use_cache": {"use_cache": False},
    "pad_token_id": {"pad_token_id": 3},
    "bos_token_id": {"bos_token_id": 3},
    "eos_token_id": {"eos_token_id": 3},
    "output_router_logits": {"output_router_logits": True},
}


def model(**changes: Any) -> PathMoEForCausalLM:
    torch.manual_seed(0)
    return PathMoEForCausalLM(PathMoEConfig(**SHAPE | changes)).eval()


def saved(config: PathMoEConfig) -> dict[str, Any]:
    return {"config": config.to_dict()}


def same_function(one: PathMoEForCausalLM, other: PathMoEForCausalLM) -> bool:
    """Whether one takes the other's weights and then computes the same, in inference."""
    shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in (one, other)]
    if shapes[0] != shapes[1]:
        return False
    other.load_state_dict(one.state_dict())
    input_ids = torch.arange(20).view(2, 10)
    with torch.inference_mode():
        return torch.equal(one(input_ids=input_ids).logits, other(input_ids=input_ids).logits)


def test_no_field_is_left_out() -> None:
    assert CHANGES.keys() == PathMoEConfig.__annotations__.keys() & {field.name for field in fields(PathMoEConfig)}


@pytest.mark.parametrize("name", CHANGES)
def test_exactly_what_changes_the_model_is_refused(name: str) -> None:
    # What a field needs beside it is the same in both models.
    beside = {key: value for key, value in CHANGES[name].items() if key != name}
    before, after = model(**beside), model(**CHANGES[name])
    if same_function(before, after):
        check_architecture(saved(before.config), after.config)
    else:
        with pytest.raises(ValueError, match=r"^model\.config\.\w+ \(.*\) must be the checkpoint's \(.*\), since it"):
            check_architecture(saved(before.config), after.config)


def test_the_step_of_the_bias_is_free() -> None:
    check_architecture(saved(PathMoEConfig(router_bias_update_rate=0.1)), PathMoEConfig(router_bias_update_rate=0.2))


def test_what_a_newer_transformers_adds_is_no_change() -> None:
    older = saved(PathMoEConfig())
    del older["config"]["transformers_version"], older["config"]["use_cache"], older["config"]["router_noise_std"]
    check_architecture(older, PathMoEConfig())


def test_the_message_names_key_values_and_remedy() -> None:
    message = (
        r"^model\.config\.num_experts \(8\) must be the checkpoint's \(16\), .*; drop the setting, or start another"
    )
    with pytest.raises(ValueError, match=message):
        check_architecture(saved(PathMoEConfig()), PathMoEConfig(num_experts=8))


def test_another_programs_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"--ckpt_path must be a checkpoint that this program wrote"):
        check_architecture(None, PathMoEConfig())
