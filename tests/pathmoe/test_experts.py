"""Our dispatch in transformers' own models and blocks: the same result as theirs."""

# Shapes: B batch, S sequence, T tokens, D hidden, E experts, K experts per token, F expert width.

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    Lfm2MoeConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

import pathmoe
from pathmoe.experts import Experts
from pathmoe_kernels import sort_by_expert

TINY: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ROUTED: dict[str, Any] = {"num_experts": 5, "moe_intermediate_size": 12}
MODELS = {
    "olmoe": OlmoeConfig(**TINY, num_experts=5),
    "mixtral": MixtralConfig(**TINY, num_local_experts=5),
    "qwen2_moe": Qwen2MoeConfig(**TINY, **ROUTED, shared_expert_intermediate_size=8),
    "qwen3_moe": Qwen3MoeConfig(**TINY, **ROUTED),
    "deepseek_v3": DeepseekV3Config(
        **{**TINY, "head_dim": 4}, n_routed_experts=8, moe_intermediate_size=12, n_group=2, topk_group=1,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8,
    ),
    "lfm2_moe": Lfm2MoeConfig(**TINY, **ROUTED, layer_types=["full_attention", "conv"], num_dense_layers=1),
    "gpt_oss": GptOssConfig(**TINY, num_local_experts=5),
}  # fmt: skip


def random_model(config: PreTrainedConfig, experts_implementation: str) -> nn.Module:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, experts_implementation=experts_implementation)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def logits_and_gradients(model: nn.Module) -> dict[str, Tensor]:
    input_ids_BS = torch.randint(0, 17, (2, 9), generator=torch.Generator().manual_seed(2))
    output = model(input_ids=input_ids_BS, labels=input_ids_BS)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach(), **gradients}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_models_of_transformers_give_their_own_result(config: PreTrainedConfig) -> None:
    expected = logits_and_gradients(random_model(config, "eager"))
    ours = logits_and_gradients(random_model(config, "pathmoe"))
    assert any(name.endswith("experts.gate_up_proj") for name in ours)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


BLOCKS = {
    "olmoe": OlmoeSparseMoeBlock,
    "mixtral": MixtralSparseMoeBlock,
    "qwen3_moe": Qwen3MoeSparseMoeBlock,
    "deepseek_v3": DeepseekV3MoE,
    "gpt_oss": GptOssMLP,
}


def block_and_gradients(name: str, experts_implementation: str) -> dict[str, Tensor]:
    """Output of a whole block, and gradients of its input, router, experts and shared experts."""
    torch.manual_seed(1)
    config = copy.deepcopy(MODELS[name])
    config._experts_implementation = experts_implementation
    block = BLOCKS[name](config)
    for tensor in (*block.parameters(), *block.buffers()):
        nn.init.normal_(tensor, std=0.3)
    x_BSD, upstream_BSD = torch.randn(2, 9, 16, requires_grad=True), torch.randn(2, 9, 16)
    output = block(x_BSD)
    y_BSD = output[0] if isinstance(output, tuple) else output
    y_BSD.backward(upstream_BSD)
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"y": y_BSD.detach(), "x": x_BSD.grad, **gradients}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_of_transformers_give_their_own_result(name: str) -> None:
    ours, expected = block_and_gradients(name, "pathmoe"), block_and_gradients(name, "eager")
    assert {"experts.gate_up_proj", "experts.down_proj"} < ours.keys()
    assert any(re.fullmatch(r"(gate|router)\.weight", parameter) for parameter in ours)
    assert any(parameter.startswith("shared_experts.") for parameter in ours) == (name == "deepseek_v3")
    assert all(gradient.any() for gradient in expected.values())
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_our_experts_give_one_result_whatever_runs_them(dtype: torch.dtype, ids_dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 16, "moe_intermediate_size": 12, "num_experts": 5, "num_experts_per_tok": 2}
    config = pathmoe.PathMoEConfig(**sizes)
    experts = Experts(config).to(dtype)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.25)
    x_TD, weights_TK = torch.randn(9, 16, dtype=dtype), torch.rand(9, 2, dtype=dtype)
    upstream_TD = torch.randn(9, 16, dtype=dtype)
    expert_ids_TK = torch.rand(9, 5).argsort(dim=-1)[:, :2].to(ids_dtype)
    results = []
    # grouped_mm takes no double precision.
    for implementation in ("eager", "pathmoe", "batched_mm", *["grouped_mm"] * (dtype == torch.float32)):
        experts.config._experts_implementation = implementation
        leaves = [x_TD.clone().requires_grad_(), weights_TK.clone().requires_grad_(), *experts.parameters()]
        for dispatch in (None, sort_by_expert(expert_ids_TK, 5)):
            output_TD = experts(leaves[0], expert_ids_TK, leaves[1], dispatch=dispatch)
            results.append([output_TD, *torch.autograd.grad((output_TD * upstream_TD).sum(), leaves)])
    assert results[0][0].dtype == dtype
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize("implementation", ["eager", "pathmoe", "batched_mm", "grouped_mm"])
def test_autocast_runs_all_in_its_dtype_whatever_that_of_the_input(implementation: str) -> None:
    sizes = {"hidden_size": 16, "moe_intermediate_size": 8, "num_experts": 5, "num_experts_per_tok": 2}
    experts = Experts(pathmoe.PathMoEConfig(**sizes))
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.25)
    experts.config._experts_implementation = implementation
    half_TD, ids_TK, weights_TK = (
        torch.randn(9, 16).bfloat16(),
        torch.rand(9, 5).argsort(dim=-1)[:, :2],
        torch.rand(9, 2),
    )
    with torch.autocast("cpu", torch.bfloat16):
        from_fp32, from_half = (experts(x_TD, ids_TK, weights_TK) for x_TD in (half_TD.float(), half_TD))
    assert (from_fp32.dtype, from_half.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(from_half.float(), from_fp32)
