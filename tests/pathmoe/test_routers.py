"""Every router against its formula written out, and what holds for all of them."""

# Shapes: T tokens, D hidden, E experts, P router width, R rank of a correction, L deciding layers of a router.

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pathmoe import PathMoEConfig
from pathmoe.routers import CosineRouter, LayerRouter, LinearRouter, RecurrentRouter, Router, build_router

T, D, E, P, R, L = 10, 12, 5, 4, 2, 3


def config_of(**kwargs: Any) -> PathMoEConfig:
    sizes = {"hidden_size": D, "num_attention_heads": 1, "num_experts": E, "num_experts_per_tok": 2, "router_dim": P}
    return PathMoEConfig(**{**sizes, **kwargs})


def random_router(**kwargs: Any) -> Router:
    """A router of which nothing is zero."""
    router = build_router(config_of(**kwargs), L)
    for parameter in router.parameters():
        nn.init.normal_(parameter, std=0.5)
    return router


def gru_cell() -> nn.GRUCell:
    cell = nn.GRUCell(P, P)
    for parameter in cell.parameters():
        nn.init.normal_(parameter)
    return cell


VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {},
    "bias": {"router_bias": True},
    "low rank": {"router_rank": R},
    "low rank with bias": {"router_rank": R, "router_bias": True},
    "cosine": {"router_type": "cosine"},
    "recurrent": {"router_type": "recurrent"},
}
every_router = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def route(router: Router, x_TD: Tensor, slot: int = 0, state_TP: Tensor | None = None, cell: Any = None) -> Tensor:
    return router(x_TD, slot=slot, state_TP=state_TP, cell=cell)[0]


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias: bool) -> None:
    router, x_TD = random_router(router_bias=bias), torch.randn(T, D)
    assert isinstance(router, LinearRouter)
    expected_TE = torch.einsum("td,ed->te", x_TD, router.weight)
    if router.bias is not None:
        expected_TE = expected_TE + router.bias
    assert (router.bias is not None) == bias
    for slot in range(L):
        torch.testing.assert_close(route(router, x_TD, slot), expected_TE)


def test_low_rank() -> None:
    router, x_TD = random_router(router_rank=R), torch.randn(T, D)
    assert isinstance(router, LinearRouter)
    for slot in range(L):
        correction_ED = torch.zeros(E, D)
        for r in range(R):
            correction_ED += router.low_rank_a[slot, :, r, None] * router.low_rank_b[slot, r]
        torch.testing.assert_close(route(router, x_TD, slot), x_TD @ (router.weight + correction_ED).T)
        torch.testing.assert_close(router.matrix(slot), router.weight + correction_ED)


def test_low_rank_layers_agree_at_the_start_and_can_part() -> None:
    router, x_TD = build_router(config_of(router_rank=R), L), torch.randn(T, D)
    router.reset_parameters(0.02)
    first, second = route(router, x_TD, 0), route(router, x_TD, 1)
    assert torch.equal(first, second)
    (first * torch.randn(T, E)).sum().backward()
    assert isinstance(router, LinearRouter)
    # B is not zero, so A of the layer that was used gets a gradient; the other layers get none.
    assert router.low_rank_a.grad is not None
    assert (router.low_rank_a.grad[0] != 0).all()
    assert not router.low_rank_a.grad[1:].any()


@pytest.mark.parametrize("log_scale", [math.log(2.0), 3.0, 9.0])  # the last one is above the cap
def test_cosine(log_scale: float) -> None:
    router, x_TD = random_router(router_type="cosine"), torch.randn(T, D)
    assert isinstance(router, CosineRouter)
    nn.init.constant_(router.log_scale, log_scale)
    # Tutel's cosine gate: both sides normalised, the scale exponentiated and capped at 1 / 0.01.
    projected_TP = x_TD @ router.projection.weight.T + router.projection.bias
    left_TP = projected_TP / projected_TP.norm(dim=1, keepdim=True)
    right_PE = router.expert_embedding_PE / router.expert_embedding_PE.norm(dim=0, keepdim=True)
    logits_TE = left_TP @ right_PE
    assert logits_TE.abs().max() <= 1
    torch.testing.assert_close(route(router, x_TD), min(math.exp(log_scale), 100.0) * logits_TE)


def test_cosine_starts_as_tutels() -> None:
    router = build_router(config_of(router_type="cosine", router_dim=64, num_experts=64), L)
    router.reset_parameters(0.02)
    assert isinstance(router, CosineRouter)
    assert router.log_scale.exp().item() == pytest.approx(1 / 0.5)
    assert router.expert_embedding_PE.std().item() == pytest.approx(0.01, rel=0.1)


def gru_step(x_TP: Tensor, h_TP: Tensor, cell: nn.GRUCell) -> Tensor:
    """One step of a GRU, gate by gate (Cho et al. 2014, with the reset gate inside as in cuDNN)."""
    w_ir, w_iz, w_in = cell.weight_ih.chunk(3)
    w_hr, w_hz, w_hn = cell.weight_hh.chunk(3)
    b_ir, b_iz, b_in = cell.bias_ih.chunk(3)
    b_hr, b_hz, b_hn = cell.bias_hh.chunk(3)
    reset_TP = torch.sigmoid(x_TP @ w_ir.T + b_ir + h_TP @ w_hr.T + b_hr)
    update_TP = torch.sigmoid(x_TP @ w_iz.T + b_iz + h_TP @ w_hz.T + b_hz)
    candidate_TP = torch.tanh(x_TP @ w_in.T + b_in + reset_TP * (h_TP @ w_hn.T + b_hn))
    return (1 - update_TP) * candidate_TP + update_TP * h_TP


def test_recurrent_runs_one_gru_along_depth() -> None:
    # RMoE: each layer projects its own input in and out, one cell is shared, the state starts at zero.
    cell, routers = gru_cell(), [random_router(router_type="recurrent") for _ in range(L)]
    state_TP: Tensor | None = None
    expected_TP = torch.zeros(T, P)
    for router in routers:
        assert isinstance(router, RecurrentRouter)
        x_TD = torch.randn(T, D)
        logits_TE, state_TP = router(x_TD, slot=0, state_TP=state_TP, cell=cell)
        expected_TP = gru_step(x_TD @ router.in_projection.weight.T, expected_TP, cell)
        torch.testing.assert_close(state_TP, expected_TP)
        torch.testing.assert_close(logits_TE, expected_TP @ router.out_projection.weight.T)
    assert cell.weight_hh.grad is None
    assert state_TP is not None
    state_TP.sum().backward()
    # The first layer's projection is reached through the states of the layers after it.
    assert isinstance(routers[0], RecurrentRouter)
    assert routers[0].in_projection.weight.grad is not None
    assert routers[0].in_projection.weight.grad.any()


@every_router
def test_only_recurrent_routers_hand_a_state_on(variant: dict[str, Any]) -> None:
    _, state_TP = random_router(**variant)(torch.randn(T, D), slot=0, cell=gru_cell())
    assert (state_TP is not None) == (variant.get("router_type") == "recurrent")


@every_router
def test_fp32_under_autocast(variant: dict[str, Any]) -> None:
    router, cell, x_TD = random_router(**variant), gru_cell(), torch.randn(T, D)
    exact = router(x_TD, slot=1, cell=cell)
    with torch.autocast("cpu", torch.bfloat16):
        again = router(x_TD, slot=1, cell=cell)
        from_half = router(x_TD.bfloat16(), slot=1, cell=cell)
    for got, want in zip(again, exact, strict=True):
        assert (got is None) == (want is None)
        assert want is None or torch.equal(got, want)
    assert all(tensor is None or tensor.dtype == torch.float32 for tensor in from_half)


@every_router
def test_fp32_with_half_precision_weights(variant: dict[str, Any]) -> None:
    router, cell, x_TD = random_router(**variant).bfloat16(), gru_cell().bfloat16(), torch.randn(T, D).bfloat16()
    state_TP = torch.randn(T, P)
    logits_TE, new_state_TP = router(x_TD, slot=1, state_TP=state_TP, cell=cell)
    # The same bf16 numbers, held in fp32.
    exact_TE, exact_state_TP = router.float()(x_TD.float(), slot=1, state_TP=state_TP, cell=cell.float())
    assert torch.equal(logits_TE, exact_TE)
    assert (new_state_TP is None) == (exact_state_TP is None)
    assert exact_state_TP is None or torch.equal(new_state_TP, exact_state_TP)


@every_router
def test_a_gate_is_the_whole_formula_or_is_not_given(variant: dict[str, Any]) -> None:
    router, x_TD = random_router(**variant), torch.randn(T, D)
    for slot in range(L):
        layer_router = LayerRouter(router, slot, gru_cell())
        with torch.autocast("cpu", torch.bfloat16):
            gate_ED = layer_router.gate()
        assert (gate_ED is not None) == (variant in ({}, {"router_rank": R}))
        if gate_ED is not None:
            assert gate_ED.dtype == torch.float32
            assert torch.equal(layer_router.logits(x_TD, None)[0], x_TD @ gate_ED.T)


@every_router
def test_gradients_of_a_shared_router_are_the_sum_over_its_layers(variant: dict[str, Any]) -> None:
    router, cell = random_router(**variant), gru_cell()
    modules = nn.ModuleList([router, cell])
    inputs, upstreams = torch.randn(L, T, D), torch.randn(L, T, E)

    def gradients(layers: list[int]) -> list[Tensor]:
        modules.zero_grad(set_to_none=False)
        loss = sum((route(router, inputs[layer], layer, cell=cell) * upstreams[layer]).sum() for layer in layers)
        assert isinstance(loss, Tensor)
        loss.backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in modules.parameters()]

    together = gradients(list(range(L)))
    apart = [gradients([layer]) for layer in range(L)]
    for total, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(total, torch.stack(parts).sum(dim=0), atol=1e-4, rtol=1e-4)


@every_router
def test_reset_sets_every_parameter(variant: dict[str, Any]) -> None:
    router = build_router(config_of(**variant), L)
    for parameter in router.parameters():
        nn.init.constant_(parameter, math.nan)
    router.reset_parameters(0.02)
    assert all(parameter.isfinite().all() for parameter in router.parameters())
