"""Small models of random weights whose routing tests change: ours, and families whose routers differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

OURS = ("indep", "path_b4", "mono_b8", "omni", "x_moe", "recurrent", "low_rank")
SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
THEIRS: dict[str, dict[str, Any]] = {
    "olmoe": {"intermediate_size": 8, "num_experts": 6},
    "mixtral": {"intermediate_size": 8, "num_local_experts": 6},
    "deepseek_v3": {
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 6,
        "moe_intermediate_size": 8,
        "intermediate_size": 8,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
    },
    "gpt_oss": {"intermediate_size": 8, "num_local_experts": 6, "head_dim": 16, "sliding_window": 4},
    "qwen3_moe": {
        "moe_intermediate_size": 8,
        "intermediate_size": 8,
        "num_experts": 6,
        "head_dim": 16,
        "mlp_only_layers": [0],
    },
    "granitemoe": {"intermediate_size": 8, "num_local_experts": 6},
    "dbrx": {
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 3,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 8, "moe_num_experts": 6, "moe_top_k": 2},
    },
}

BuildMoE = Callable[..., Any]
"""From a name and fields of the configuration to a model in evaluation mode; the same seed gives the same weights."""


def _build(name: str, **fields: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    import pathmoe  # noqa: F401  # makes our models known to transformers

    torch.manual_seed(0)
    if name in OURS:
        path = Path(__file__).resolve().parents[2] / "configs" / "routers" / f"{name}.yaml"
        own = yaml.safe_load(path.read_text())["model"]["config"]
        own |= {"moe_intermediate_size": 8, "num_experts": 6, "num_hidden_layers": 9}
        config = AutoConfig.for_model("pathmoe", **SHAPE | own | fields)
    else:
        config = AutoConfig.for_model(name, **SHAPE | THEIRS[name] | fields)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    for buffer_name, buffer in model.named_buffers():
        if "correction_bias" in buffer_name:
            nn.init.normal_(buffer, std=0.3)
    return model


@pytest.fixture(scope="session")
def build_moe() -> BuildMoE:
    """Build a model by its name."""
    return _build


@pytest.fixture(params=[*OURS, *THEIRS])
def moe_name(request: pytest.FixtureRequest) -> str:
    """Each name."""
    return str(request.param)
