"""Counts from the configuration against the model that is built: parameters, FLOPs that torch counts, bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.counts import flops_per_token, parameter_counts, training_bytes
from pathmoe.training.optim import OptimizerConfig, build_optimizer, parameters_per_optimizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROUTERS = sorted(path.stem for path in (CONFIGS / "routers").glob("*.yaml"))
SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 9,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 20,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared-and-dense": {"n_shared_experts": 2, "first_k_dense_replace": 1, "intermediate_size": 52},
    "tied-with-biases": {"tie_word_embeddings": True, "attention_bias": True},
}


def config_of(*names: str) -> dict[str, Any]:
    """The `model.config` that these YAML files compose to."""
    merged: dict[str, Any] = {}
    for name in names:
        merged |= yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["config"]
    return merged


def on_meta(config: PathMoEConfig) -> PathMoEForCausalLM:
    with torch.device("meta"):
        return PathMoEForCausalLM(config)


def numel(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def assert_counts_are_the_models(config: PathMoEConfig) -> None:
    counts, model = parameter_counts(config), on_meta(config)
    # parameters() gives a tied or shared one once.
    named = dict(model.named_parameters())
    part = {
        "embeddings": numel(p for name, p in named.items() if "embed_tokens" in name or "lm_head" in name),
        "attention": numel(p for name, p in named.items() if "self_attn" in name),
        "norms": numel(p for name, p in named.items() if "layernorm" in name or name == "model.norm.weight"),
        "routed_experts": numel(p for name, p in named.items() if ".experts." in name),
        "shared_experts": numel(p for name, p in named.items() if ".shared_experts." in name),
        "routers": numel(p for name, p in named.items() if "router" in name),
    }
    assert {name: getattr(counts, name) for name in part} == part
    assert counts.dense == numel(named.values()) - sum(part.values())
    assert counts.total == numel(named.values())
    assert counts.trainable == numel(p for p in named.values() if p.requires_grad)
    one_expert = numel(p[0] for name, p in named.items() if ".experts." in name)
    assert counts.active == counts.total - one_expert * (config.num_experts - config.num_experts_per_tok)
    per_optimizer = parameters_per_optimizer(model, OptimizerConfig(name="muon"))
    assert counts.hidden_matrices == counts.trainable - per_optimizer["AdamW"]


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("router", ROUTERS)
def test_parameter_counts_equal_the_built_models_for_every_router(router: str, extras: str) -> None:
    assert_counts_are_the_models(PathMoEConfig(**SHAPE | EXTRAS[extras] | config_of(f"routers/{router}")))


@st.composite
def configs(draw: st.DrawFn) -> PathMoEConfig:
    """Any small valid configuration."""
    layers = draw(st.integers(1, 6))
    dense = draw(st.integers(0, layers - 1))
    blocks = st.none() | st.integers(1, layers - dense) | partitions(layers - dense)
    key_value_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    router_type = draw(st.sampled_from(["linear", "cosine", "recurrent"]))
    experts = draw(st.integers(1, 7))
    fields: dict[str, Any] = {
        "num_hidden_layers": layers,
        "first_k_dense_replace": dense,
        "layers_per_router": draw(blocks),
        "layers_per_decision": draw(blocks),
        "num_key_value_heads": key_value_heads,
        "num_attention_heads": key_value_heads * groups,
        "hidden_size": key_value_heads * groups * 2 * draw(st.integers(1, 4)),
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "router_type": router_type,
        "router_rank": draw(st.integers(0, 3)) if router_type == "linear" else 0,
        "router_bias": draw(st.booleans()) and router_type == "linear",
        "intermediate_size": draw(st.none() | st.integers(1, 9)),
        "router_bias_update_rate": draw(st.sampled_from([0.0, 0.1])),
    }
    for name, highest in (("vocab_size", 50), ("moe_intermediate_size", 9), ("router_dim", 9)):
        fields[name] = draw(st.integers(1, highest))
    for name in ("tie_word_embeddings", "attention_bias", "router_frozen"):
        fields[name] = draw(st.booleans())
    fields["n_shared_experts"] = draw(st.integers(0, 2))
    try:
        return PathMoEConfig(**fields)
    except ValueError as error:
        assume("no layer would use it" not in str(error))
        raise


@st.composite
def partitions(draw: st.DrawFn, total: int) -> list[int]:
    """Block lengths that sum to `total`."""
    ends = [layer for layer in range(1, total) if draw(st.booleans())] + [total]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@given(config=configs())
def test_parameter_counts_equal_the_built_models(config: PathMoEConfig) -> None:
    assert_counts_are_the_models(config)


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("router", ROUTERS)
def test_flops_are_those_that_torch_counts(router: str, extras: str) -> None:
    config = PathMoEConfig(**SHAPE | EXTRAS[extras] | config_of(f"routers/{router}") | {"router_rank": 0})
    # Plain products everywhere, which the counter sees: also where routers give their logits away.
    model = PathMoEForCausalLM(config)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    length = 12
    with FlopCounterMode(display=False) as counter:
        output = model(torch.zeros(1, length, dtype=torch.int64), use_cache=False, output_router_logits=True)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}

    flops = flops_per_token(config, length)
    assert counted["aten.bmm"] * (length + 1) == flops.attention * length * 2 * length, "it counts masked pairs too"
    assert sum(counted.values()) - counted["aten.bmm"] == flops.gemms * length
    assert flops.forward == flops.gemms + flops.attention

    with FlopCounterMode(display=False) as counter:
        output.logits.sum().backward()
    if not config.router_frozen:
        # A recurrent router starts from a constant state, which needs no gradient.
        constant_state = 2 * 3 * config.router_dim**2 * length if config.router_type == "recurrent" else 0
        assert counter.get_total_flops() + constant_state == 2 * sum(counted.values())
    assert flops.training == 3 * flops.forward


def test_a_low_rank_correction_costs_no_flops_per_token() -> None:
    plain, low_rank = PathMoEConfig(**SHAPE), PathMoEConfig(**SHAPE, router_rank=3)
    assert flops_per_token(plain, 7) == flops_per_token(low_rank, 7)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("router", ["path_b4", "rand", "recurrent"])
def test_bytes_are_those_that_a_step_allocates(router: str, optimizer: Any) -> None:
    config = PathMoEConfig(**SHAPE | EXTRAS["shared-and-dense"] | config_of(f"routers/{router}"))
    model = PathMoEForCausalLM(config)
    torch_optimizer = build_optimizer(model, OptimizerConfig(name=optimizer))
    model(torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    torch_optimizer.step()

    expected = training_bytes(config, optimizer)
    assert expected.weights == sum(p.nbytes for p in model.parameters())
    assert expected.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states = [value for state in torch_optimizer.state.values() for value in state.values()]
    assert expected.optimizer_state == sum(state.nbytes for state in states if state.ndim > 0)
    assert expected.total == expected.weights + expected.gradients + expected.optimizer_state


def test_bytes_follow_the_dtypes() -> None:
    config = PathMoEConfig(**SHAPE)
    full, half = training_bytes(config), training_bytes(config, weight_dtype=torch.bfloat16)
    assert (half.weights * 2, half.gradients * 2) == (full.weights, full.gradients)
    assert half.optimizer_state == full.optimizer_state == 2 * full.weights
    assert training_bytes(config, state_dtype=torch.bfloat16).optimizer_state == full.weights


@pytest.mark.parametrize("router", ["indep", "path_b4"])
@pytest.mark.parametrize(("size", "total", "active"), [("0.9b", 0.9e9, 0.37e9), ("16b", 16.2e9, 2.13e9)])
def test_paper_scale_models_have_the_papers_sizes(size: str, total: float, active: float, router: str) -> None:
    config = PathMoEConfig(**config_of(f"pathmoe_{size}", f"routers/{router}"))
    counts = parameter_counts(config)
    assert counts.total == numel(on_meta(config).parameters())
    assert counts.total == pytest.approx(total, rel=0.02)
    assert counts.active == pytest.approx(active, rel=0.02)
    routers = config.num_hidden_layers if router == "indep" else config.num_hidden_layers // 4
    assert counts.routers == routers * config.num_experts * config.hidden_size


def test_nine_routers_ship() -> None:
    assert len(ROUTERS) == 9
