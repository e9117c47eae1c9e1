"""Our dispatch in transformers' own models: the same result where the experts have our form, a refusal where not."""

# Shapes: B batch, S sequence, T tokens, D hidden, E experts, K experts per token, F expert width.

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
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
SERVED = {
    "olmoe": OlmoeConfig(**TINY, num_experts=5),
    "mixtral": MixtralConfig(**TINY, num_local_experts=5),
    "qwen2_moe": Qwen2MoeConfig(**TINY, **ROUTED, shared_expert_intermediate_size=8),
    "qwen3_moe": Qwen3MoeConfig(**TINY, **ROUTED),
    "deepseek_v3": DeepseekV3Config(
        **{**TINY, "head_dim": 4}, n_routed_experts=8, moe_intermediate_size=12, n_group=2, topk_group=1,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8,
    ),
    "lfm2_moe": Lfm2MoeConfig(**TINY, **ROUTED, layer_types=["full_attention", "conv"], num_dense_layers=1),
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


@pytest.mark.parametrize("config", SERVED.values(), ids=SERVED)
def test_the_models_of_transformers_give_their_own_result(config: PreTrainedConfig) -> None:
    expected = logits_and_gradients(random_model(config, "eager"))
    ours = logits_and_gradients(random_model(config, "pathmoe"))
    assert any(name.endswith("experts.gate_up_proj") for name in ours)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_model_of_another_form_is_refused_by_name() -> None:
    config = GptOssConfig(**{**TINY, "head_dim": 8}, num_local_experts=5)
    model = random_model(config, "pathmoe")
    with pytest.raises(ValueError, match=r"does not serve GptOssExperts, which has biases, .*transposed") as error:
        model(input_ids=torch.zeros(1, 3, dtype=torch.int64))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("use experts_implementation=grouped_mm")


class AnyConfig:
    """Sizes under every name by which the experts of some model ask for them."""

    _experts_implementation = "eager"
    hidden_size = moe_hidden_size = 16
    intermediate_size = moe_intermediate_size = 12
    num_experts = num_local_experts = n_routed_experts = moe_num_experts = 5
    hidden_act = hidden_activation = mlp_hidden_act = "silu"
    moe_latent_size = None

    def __getattr__(self, name: str) -> float:
        if name.startswith("__"):
            raise AttributeError(name)
        return 1.0  # limits, epsilons and factors


def experts_classes() -> Iterator[type[nn.Module]]:
    """Every experts class of transformers that goes through its experts interface."""
    for file in sorted(Path(inspect.getfile(transformers)).parent.glob("models/*/modeling_*.py")):
        names = re.findall(
            r"^@use_experts_implementation.*\nclass (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE
        )
        if names:
            module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
            yield from (getattr(module, name) for name in names)


def random_experts(experts_class: type[nn.Module]) -> nn.Module:
    experts = experts_class(AnyConfig())
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.5)
    return experts


def test_all_experts_of_transformers_are_served_exactly_or_refused() -> None:
    arguments = 3 * torch.randn(7, 16), torch.rand(7, 5).argsort(dim=-1)[:, :2], torch.rand(7, 2)
    served, refused = set(), {}
    for experts_class in experts_classes():
        experts = random_experts(experts_class)
        expected_TD = experts(*arguments)
        experts.config._experts_implementation = "pathmoe"
        try:
            output_TD = experts(*arguments)
        except ValueError as error:
            assert f"does not serve {experts_class.__name__}, " in str(error)
            refused[experts_class.__name__] = str(error)
        else:
            torch.testing.assert_close(output_TD, expected_TD, atol=1e-4, rtol=1e-5)
            served.add(experts_class.__name__)
    assert {"OlmoeExperts", "MixtralExperts", "Qwen3MoeExperts", "DeepseekV3Experts", "Lfm2MoeExperts"} <= served
    reasons = {
        "AriaExperts": "transposed weights",
        "GptOssExperts": "biases, transposed weights, interleaved gate and up, a gate of their own",
        "NemotronHExperts": "no gate",
        "MuseSparkExperts": "a norm after each expert",
        "DeepseekV4Experts": "a gate of their own",
    }
    for name, reason in reasons.items():
        assert f"which has {reason}" in refused[name]


def test_another_activation_and_expert_parallelism_are_refused() -> None:
    class GeluConfig(AnyConfig):
        hidden_act = "gelu"
        _experts_implementation = "pathmoe"

    arguments = torch.randn(3, 16), torch.tensor([[0, 1]] * 3), torch.rand(3, 2)
    olmoe_experts = next(c for c in experts_classes() if c.__name__ == "OlmoeExperts")
    with pytest.raises(ValueError, match="OlmoeExperts, which has an activation other than SiLU; "):
        olmoe_experts(GeluConfig())(*arguments)
    experts = random_experts(olmoe_experts)
    experts.config._experts_implementation = "pathmoe"
    experts._is_expert_parallel = True
    with pytest.raises(ValueError, match="which has expert parallelism by transformers; "):
        experts(*arguments)


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_our_experts_give_one_result_whatever_runs_them(dtype: torch.dtype, ids_dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 16, "moe_intermediate_size": 12, "num_experts": 5, "num_experts_per_tok": 2}
    config = pathmoe.PathMoEConfig(**sizes)
    experts = Experts(config).to(dtype)
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
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
