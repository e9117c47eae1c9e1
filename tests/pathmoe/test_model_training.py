"""The language model in training: every axis of routing learns, gradients are whole, recomputation is exact."""

# Shapes: T tokens, E experts, K experts per token.

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from pathmoe import PathMoEConfig, PathMoEForCausalLM

ROUTERS = sorted((Path(__file__).resolve().parents[2] / "configs" / "routers").glob("*.yaml"))
VOCABULARY = 24
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 9,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "router_dim": 6,
    "initializer_range": 0.15,
}

every_router = pytest.mark.parametrize("router", ROUTERS, ids=lambda path: path.stem)


def build(router: Path | None = None, **fields: Any) -> PathMoEForCausalLM:
    from_yaml = yaml.safe_load(router.read_text())["model"]["config"] if router else {}
    torch.manual_seed(0)
    return PathMoEForCausalLM(PathMoEConfig(**SHAPE | from_yaml | fields)).train()


def token_ids() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model: PathMoEForCausalLM, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    loss = model(token_ids(), labels=token_ids(), **kwargs).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@every_router
def test_exactly_the_trainable_parameters_get_a_gradient(router: Path) -> None:
    # A parameter without one stops data-parallel training.
    model = build(router)
    _, gradients = loss_and_gradients(model)
    without = {name for name, gradient in gradients.items() if gradient is None}
    assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert without == ({name for name in gradients if "router" in name} if model.config.router_frozen else set())
    for name, gradient in gradients.items():
        assert gradient is None or gradient.isfinite().all(), name
        # B of a correction A B moves only once A, which starts at zero, has.
        if gradient is not None and "router" in name and "low_rank_b" not in name:
            assert gradient.any(), name


@st.composite
def block_lengths(draw: st.DrawFn, num_layers: int) -> int | list[int] | None:
    """Any value of `layers_per_router` or `layers_per_decision`: null, a number, or a list."""
    if draw(st.booleans()):
        return draw(st.none() | st.integers(1, num_layers))
    ends = [layer for layer in range(1, num_layers) if draw(st.booleans())] + [num_layers]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


@st.composite
def routing_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Any combination of the axes of routing, and of what is orthogonal to them."""
    num_hidden_layers = draw(st.integers(1, 6))
    dense = draw(st.integers(0, min(2, num_hidden_layers - 1)))
    num_experts = draw(st.integers(1, 6))
    router_type = draw(st.sampled_from(["linear", "cosine", "recurrent"]))
    choices: dict[str, st.SearchStrategy[Any]] = {
        "layers_per_router": block_lengths(num_hidden_layers - dense),
        "layers_per_decision": block_lengths(num_hidden_layers - dense),
        "num_experts_per_tok": st.integers(1, num_experts),
        "router_rank": st.sampled_from([0, 1, 3]) if router_type == "linear" else st.just(0),
        "router_bias": st.booleans() if router_type == "linear" else st.just(False),
        "router_frozen": st.booleans(),
        "scoring_func": st.sampled_from(["softmax", "sigmoid"]),
        "norm_topk_prob": st.booleans(),
        "routed_scaling_factor": st.sampled_from([1.0, 2.5]),
        "n_shared_experts": st.integers(0, 2),
        "router_noise_std": st.sampled_from([0.0, 0.5]),
        "router_aux_loss_coef": st.sampled_from([0.0, 0.1]),
        "router_aux_loss_scope": st.sampled_from(["micro_batch", "global_batch"]),
        "router_z_loss_coef": st.sampled_from([0.0, 0.1]),
        "router_bias_update_rate": st.sampled_from([0.0, 0.1]),
        "force_uniform_routing": st.booleans(),
    }
    fixed = {
        "num_hidden_layers": num_hidden_layers,
        "first_k_dense_replace": dense,
        "num_experts": num_experts,
        "router_type": router_type,
    }
    return fixed | {name: draw(strategy) for name, strategy in choices.items()}


@settings(max_examples=75)
@given(fields=routing_fields())
def test_every_combination_builds_and_learns(fields: dict[str, Any]) -> None:
    try:
        model = build(**fields)
    except ValueError as error:
        assume("no layer would use it" not in str(error))
        raise

    def forward() -> tuple[Tensor, list[Tensor]]:
        output = model(token_ids(), labels=token_ids(), noise_seed=3)
        return output.loss, [routing.expert_ids_TK for routing in output.routings]

    before, chosen = forward()
    before.backward()
    assert before.isfinite()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) != parameter.requires_grad, name

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    squared_norm = sum(float(parameter.grad.square().sum()) for parameter in trained)
    torch.optim.SGD(trained, lr=1e-3 / squared_norm).step()
    after, still_chosen = forward()
    # The loss jumps where another expert is chosen, and goes down in between.
    unchanged = all(torch.equal(*pair) for pair in zip(chosen, still_chosen, strict=True))
    assert not unchanged or 0.5e-3 < before - after < 1.5e-3


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
@every_router
def test_checkpointed_activations_give_the_same_bits(router: Path, noise_std: float) -> None:
    losses = {"router_aux_loss_coef": 0.1, "router_z_loss_coef": 0.1, "router_bias_update_rate": 0.1}
    model = build(router, router_noise_std=noise_std, use_cache=False, **losses)
    loss, gradients = loss_and_gradients(model, noise_seed=7)
    model.activation_checkpointing_enable()
    recomputed_loss, recomputed = loss_and_gradients(model, noise_seed=7)

    assert torch.equal(loss, recomputed_loss)
    for name, gradient in gradients.items():
        assert gradient is recomputed[name] is None or torch.equal(gradient, recomputed[name]), name
    # Selection biases are the trainer's to move, once a step: a forward that runs twice must not.
    assert not any(buffer.any() for name, buffer in model.named_buffers() if name.endswith("selection_bias_E"))


def test_recomputation_counts_no_routing_twice() -> None:
    model = build(router_noise_std=0.5, layers_per_decision=2, layers_per_router=4, use_cache=False)
    model.activation_checkpointing_enable()
    output = model(token_ids(), labels=token_ids(), output_router_logits=True, noise_seed=7)
    routings = [routing.expert_ids_TK.clone() for routing in output.routings]
    output.loss.backward()
    assert len(output.router_logits) == len(model.model.sharing.deciding_layers) == 5
    assert len(output.routings) == 9
    assert all(torch.equal(r.expert_ids_TK, ids_TK) for r, ids_TK in zip(output.routings, routings, strict=True))


def test_noise_is_a_function_of_its_seed_and_of_training() -> None:
    model = build(router_noise_std=0.5)
    first, again, other = (loss_and_gradients(model, noise_seed=seed)[0] for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    drawn = [loss_and_gradients(model)[0] for _ in range(2)]
    assert not torch.equal(*drawn)
    model.eval()
    silent = [loss_and_gradients(model, noise_seed=seed)[0] for seed in (7, 8)]
    assert torch.equal(*silent)


def test_noise_differs_between_layers() -> None:
    # Layers that decide alike without noise: the same router on what is, with weights of zero, the same input.
    model = build(layers_per_router=None, router_noise_std=2.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "down_proj" in name or "o_proj" in name:
                parameter.zero_()
    noisy = model(token_ids(), noise_seed=7).routings
    quiet = model.eval()(token_ids(), noise_seed=7, output_router_logits=True).routings
    assert all(torch.equal(quiet[0].logits_TE, routing.logits_TE) for routing in quiet)
    noises = [(routing.logits_TE - quiet[0].logits_TE).detach() for routing in noisy]
    correlations = torch.corrcoef(torch.stack([noise_TE.flatten() for noise_TE in noises]))
    assert correlations.fill_diagonal_(0).abs().max() < 0.35
    assert torch.stack(noises).std() == pytest.approx(2.0, rel=0.1)


@pytest.fixture
def _two_ranks() -> Iterator[None]:
    """torch's own stand-in for a second process: collectives are called and do nothing."""
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_two_ranks")
@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # what counts the collectives hooks every module
@pytest.mark.parametrize(
    ("scope", "coefficient", "training", "collectives"),
    [
        ("global_batch", 0.1, True, 1),
        ("global_batch", 0.0, True, 0),
        ("global_batch", 0.1, False, 0),
        ("micro_batch", 0.1, True, 0),
    ],
)
def test_ranks_talk_only_where_a_loss_needs_their_load(
    scope: str, coefficient: float, training: bool, collectives: int
) -> None:
    model = build(router_aux_loss_scope=scope, router_aux_loss_coef=coefficient).train(training)
    with CommDebugMode() as communication:
        output = model(token_ids(), labels=token_ids())
    assert communication.get_total_counts() == collectives
    assert output.balance_load is not None
