"""Model settings that would train nothing, or can't run here."""

from typing import Any

import pytest
import torch

from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.model_requirements import (
    check_attention_is_installed,
    check_attention_runs,
    check_experts_can_be_shared,
    check_routers_learn,
)

ONE_OF_FOUR = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 1,
}


def router_gradient(config: PathMoEConfig) -> float:
    model = PathMoEForCausalLM(config)
    input_ids = torch.arange(12).view(1, 12)
    model(input_ids, labels=input_ids).cross_entropy.backward()
    return max(float(router.weight.grad.abs().max()) for router in model.model.routers)


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("changes", "learns"),
    [
        ({}, False),
        # A balance loss gives the router a gradient, but none from the data.
        ({"router_aux_loss_coef": 0.1}, False),
        ({"norm_topk_prob": False}, True),
        ({"num_experts_per_tok": 2}, True),
    ],
)
def test_refuses_exactly_the_routers_that_get_no_gradient(
    changes: dict[str, Any], learns: bool, scoring_func: Any
) -> None:
    config = PathMoEConfig(**ONE_OF_FOUR | {"scoring_func": scoring_func} | changes)
    assert (router_gradient(config) > 1e-7) == learns
    if learns:
        check_routers_learn(config)
    else:
        with pytest.raises(
            ValueError, match=r"^model\.config\.norm_topk_prob \(true\) must be false with .*_tok \(1\)"
        ):
            check_routers_learn(config)


@pytest.mark.parametrize("changes", [{"router_frozen": True}, {"num_experts": 1}], ids=str)
def test_takes_routers_that_have_nothing_to_learn(changes: dict[str, Any]) -> None:
    check_routers_learn(PathMoEConfig(**ONE_OF_FOUR | changes))


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_what_comes_with_torch_is_installed(attention: str) -> None:
    check_attention_is_installed(PathMoEConfig(), attention)


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention may be there")
@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_refuses_flash_attention_that_is_not_installed(attention: str) -> None:
    config = PathMoEConfig()
    message = (
        rf"^model\.attn_implementation \({attention}\) can't be used here \(.* installed.*\); install its package on"
    )
    with pytest.raises(ValueError, match=message):
        check_attention_is_installed(config, attention)
    assert config._attn_implementation is None, "left as it was"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_flash_attention_takes_half_precision(precision: str) -> None:
    check_attention_runs("flash_attention_2", precision, "cuda", training=True)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_flash_attention_takes_no_other(precision: str) -> None:
    message = rf"^model\.attn_implementation \(flash_attention_2\) .*trainer\.precision \({precision}\) must be; set"
    with pytest.raises(ValueError, match=message):
        check_attention_runs("flash_attention_2", precision, "cuda", training=True)


def test_flex_attention_trains_on_accelerators_only() -> None:
    check_attention_runs("flex_attention", "32-true", "cuda", training=True)
    check_attention_runs("flex_attention", "32-true", "cpu", training=False)
    with pytest.raises(ValueError, match=r"^model\.attn_implementation \(flex_attention\) must be sdpa or eager to tr"):
        check_attention_runs("flex_attention", "32-true", "cpu", training=True)


@pytest.mark.parametrize(
    ("implementation", "ranks", "shards", "message"),
    [
        ("grouped_mm", 2, 1, r"^model\.experts_implementation \(grouped_mm\) must be pathmoe under .*_size \(2\)"),
        ("pathmoe", 3, 1, r"expert_parallel_size \(3\) must divide model\.config\.num_experts \(4\); change"),
        ("pathmoe", 2, 3, r"\(2\) leaves 3 ranks to share each expert, .* divide model\.config\.hidden_size \(16\);"),
        (
            "pathmoe",
            2,
            16,
            r"\(2\) leaves 16 ranks .* divide model\.config\.moe_intermediate_size, twice, \(12\); raise",
        ),
    ],
)
def test_refuses_experts_that_ranks_can_not_share(implementation: str, ranks: int, shards: int, message: str) -> None:
    config = PathMoEConfig(**ONE_OF_FOUR | {"moe_intermediate_size": 6})
    check_experts_can_be_shared(config, "pathmoe", 2, 4)
    with pytest.raises(ValueError, match=message):
        check_experts_can_be_shared(config, implementation, ranks, shards)
