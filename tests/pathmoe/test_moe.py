"""The MoE layer: who decides, what a follower takes over, and what is added to what."""

# Shapes: B batch, S sequence, T = B*S tokens, D hidden, F expert width, E experts, K experts per token,
# P router state width.

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pathmoe import PathMoEConfig, PathMoEModel
from pathmoe.moe import MoELayer
from pathmoe.routers import LayerRouter, LinearRouter, build_router
from pathmoe.routing import Routing, decide

B, S, D, E = 2, 5, 8, 6


def config_of(**kwargs: Any) -> PathMoEConfig:
    sizes = {
        "vocab_size": 11,
        "hidden_size": D,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "moe_intermediate_size": 12,
        "num_experts": E,
        "num_experts_per_tok": 2,
        "router_dim": 4,
    }
    return PathMoEConfig(**{**sizes, **kwargs})


def layer_and_router(config: PathMoEConfig, decides: bool = True) -> tuple[MoELayer, LayerRouter]:
    layer, router = MoELayer(config, decides), build_router(config, 1)
    for parameter in [*layer.parameters(), *router.parameters()]:
        nn.init.normal_(parameter, std=0.5)
    return layer, LayerRouter(router)


def assert_same_decision(left: Routing, right: Routing) -> None:
    for got, want in zip(
        left.routed[:-1] + left.routed.dispatch, right.routed[:-1] + right.routed.dispatch, strict=True
    ):
        assert isinstance(got, Tensor)
        assert isinstance(want, Tensor)
        assert got.dtype == want.dtype
        assert torch.equal(got, want)


class OpCalls(TorchDispatchMode):
    """Counts the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pathmoe":
            self.of[func._opname] += 1
        return func(*args, **(kwargs or {}))


def swiglu(x_D: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    gate_F = gate_FD @ x_D
    return down_DF @ (gate_F * torch.sigmoid(gate_F) * (up_FD @ x_D))


@pytest.mark.parametrize("n_shared_experts", [0, 2])
def test_is_the_weighted_sum_of_the_chosen_and_the_shared_experts(n_shared_experts: int) -> None:
    config = config_of(n_shared_experts=n_shared_experts)
    layer, router = layer_and_router(config)
    x_BSD = torch.randn(B, S, D)
    y_BSD, routing = layer(x_BSD, router)
    assert y_BSD.shape == x_BSD.shape
    assert (layer.shared_experts is not None) == (n_shared_experts > 0)
    for t, x_D in enumerate(x_BSD.flatten(0, 1)):
        expected_D = torch.zeros(D)
        for e, weight in zip(routing.expert_ids_TK[t].tolist(), routing.expert_weights_TK[t], strict=True):
            gate_FD, up_FD = layer.experts.gate_up_proj[e].chunk(2)
            expected_D = expected_D + weight * swiglu(x_D, gate_FD, up_FD, layer.experts.down_proj[e])
        if layer.shared_experts is not None:
            shared = layer.shared_experts
            assert shared.gate_proj.weight.shape == (n_shared_experts * 12, D)
            matrices = (shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
            expected_D = expected_D + swiglu(x_D, *matrices)
        torch.testing.assert_close(y_BSD.flatten(0, 1)[t], expected_D, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"router_bias": True}, {"router_rank": 2}, {"router_type": "cosine"}])
@pytest.mark.parametrize("keep_logits", [False, True])
def test_a_decider_decides_from_its_own_input(fields: dict[str, Any], keep_logits: bool) -> None:
    config = config_of(router_aux_loss_coef=0.1, **fields)
    layer, router = layer_and_router(config)
    x_BSD, noise_TE, mask_T = torch.randn(B, S, D), torch.randn(B * S, E), torch.rand(B * S) < 0.7
    logits_TE = router.router(x_BSD.flatten(0, 1), slot=0)[0]
    is_one_matrix = fields in ({}, {"router_rank": 2})
    for noise in (None, noise_TE):
        _, routing = layer(x_BSD, router, None, noise, mask_T, keep_logits)
        expected = decide(logits_TE if noise is None else logits_TE + noise, config, token_mask_T=mask_T)
        assert_same_decision(routing, expected)
        if is_one_matrix and noise is None and not keep_logits:
            assert routing.logits_TE is None
        else:
            assert torch.equal(routing.logits_TE, expected.logits_TE)


@pytest.mark.parametrize("router_rank", [0, 2])
def test_a_fused_decision_is_in_fp32_under_autocast(router_rank: int) -> None:
    layer, router = layer_and_router(config_of(router_rank=router_rank, router_aux_loss_coef=0.1))
    assert isinstance(router.router, LinearRouter)
    x_BSD, upstream_TK = torch.randn(B, S, D, requires_grad=True), torch.randn(B * S, 2)

    def routing_and_gradients(autocast: bool) -> tuple[Routing, tuple[Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            _, routing = layer(x_BSD, router)
        loss = (routing.expert_weights_TK * upstream_TK).sum() + routing.routed.logsumexp_T.sum()
        return routing, torch.autograd.grad(loss, [x_BSD, *router.router.parameters()])

    expected, expected_gradients = routing_and_gradients(autocast=False)
    routing, gradients = routing_and_gradients(autocast=True)
    assert routing.logits_TE is None
    assert routing.expert_weights_TK.dtype == routing.routed.logsumexp_T.dtype == torch.float32
    assert_same_decision(routing, expected)
    assert all(torch.equal(got, want) for got, want in zip(gradients, expected_gradients, strict=True))


def test_a_follower_takes_the_decision_as_it_is() -> None:
    config = config_of(layers_per_router=4, layers_per_decision=4)
    layer, _ = layer_and_router(config, decides=False)
    previous = decide(torch.randn(B * S, E), config, state_TP=torch.randn(B * S, 4))
    x_BSD = torch.randn(B, S, D)
    y_BSD, routing = layer(x_BSD, None, previous, torch.full((B * S, E), 1e6))
    assert routing is previous
    arguments = x_BSD.flatten(0, 1), previous.expert_ids_TK, previous.expert_weights_TK
    torch.testing.assert_close(y_BSD.flatten(0, 1), layer.experts(*arguments))


def test_the_selection_bias_steers_the_choice() -> None:
    layer, router = layer_and_router(config_of(router_bias_update_rate=0.1))
    assert layer.selection_bias_E is not None
    layer.selection_bias_E[4] = 10.0
    _, routing = layer(torch.randn(B, S, D), router)
    assert (routing.expert_ids_TK[:, 0] == 4).all()


@pytest.mark.parametrize(
    ("rate", "decides", "exists"), [(0.1, True, True), (0.1, False, False), (0.0, True, False), (0.0, False, False)]
)
def test_a_selection_bias_exists_only_where_a_decision_is_balanced(rate: float, decides: bool, exists: bool) -> None:
    layer = MoELayer(config_of(router_bias_update_rate=rate), decides)
    assert (layer.selection_bias_E is not None) == exists
    assert ("selection_bias_E" in layer.state_dict()) == exists
    assert "selection_bias_E" not in dict(layer.named_parameters())


def model_of(**kwargs: Any) -> PathMoEModel:
    torch.manual_seed(3)
    return PathMoEModel(config_of(initializer_range=0.5, **kwargs))


def test_noise_changes_choices_in_training_only() -> None:
    model, plain = model_of(router_noise_std=5.0), model_of()
    input_ids_BS = torch.randint(0, 11, (B, S))

    def choices(of: PathMoEModel, noise_seed: int | None = None) -> Tensor:
        routings = of(input_ids_BS, noise_seed=noise_seed).routings
        assert routings is not None
        return torch.stack([routing.expert_ids_TK for routing in routings])

    assert not torch.equal(choices(model.train(), 1), choices(plain.train(), 1))
    assert torch.equal(choices(model.train(), 1), choices(model.train(), 1))
    assert not torch.equal(choices(model.train(), 1), choices(model.train(), 2))
    assert torch.equal(choices(model.eval(), 1), choices(plain.eval()))


def test_followers_in_the_model_share_one_decision() -> None:
    model = model_of(layers_per_router=[1, 3], layers_per_decision=[1, 3], router_bias_update_rate=0.1)
    routings = model(torch.randint(0, 11, (B, S))).routings
    assert routings is not None
    assert routings[0] is not routings[1]
    assert routings[1] is routings[2] is routings[3]
    biases = [name for name, _ in model.named_buffers() if name.endswith("selection_bias_E")]
    assert biases == [f"layers.{layer}.mlp.selection_bias_E" for layer in (0, 1)]


@pytest.mark.parametrize(("layers_per_decision", "decisions"), [(1, 4), (2, 2), (4, 1)])
def test_rows_are_sorted_once_a_decision(layers_per_decision: int, decisions: int) -> None:
    model = model_of(layers_per_router=4, layers_per_decision=layers_per_decision)
    with OpCalls() as calls:
        routings = model(torch.randint(0, 11, (B, S))).routings
    # The op that routes sorts too; the other one sorts for callers without a routing of ours.
    assert calls.of == {"route": decisions, "expert_mlp": 4}
    for routing in routings:
        by_expert = routing.expert_ids_TK.flatten().argsort(stable=True)
        assert routing.routed.dispatch.order_N.tolist() == by_expert.tolist()


def test_a_recurrent_router_continues_from_the_last_decision_across_followers() -> None:
    model = model_of(router_type="recurrent", layers_per_router=2, layers_per_decision=2)
    # With no input left but the state, the second decision still depends on the first.
    nn.init.zeros_(model.routers[1].in_projection.weight)
    routings = model(torch.randint(0, 11, (B, S))).routings
    assert model.router_cell is not None
    assert routings is not None
    state_TP = routings[0].router_state_TP
    assert state_TP is not None
    assert routings[2].router_state_TP is not None
    torch.testing.assert_close(routings[2].router_state_TP, model.router_cell(torch.zeros_like(state_TP), state_TP))
