"""Balancing: transformers' figure for one layer, closed forms, and the bias update by hand."""

# Shapes: B batch, S sequence, T = B*S tokens, E experts, K experts per token, L deciding layers.

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from pathmoe import PathMoEConfig
from pathmoe.balancing import expert_load, sum_over_ranks, switch_loss, update_selection_bias, z_loss
from pathmoe.routing import Routing, decide

E, K = 6, 2


def routing_of(
    logits_TE: Tensor, scoring_func: str = "softmax", num_experts_per_tok: int = K, mask_T: Tensor | None = None
) -> Routing:
    config = PathMoEConfig(
        num_experts=logits_TE.shape[-1],
        num_experts_per_tok=num_experts_per_tok,
        scoring_func=scoring_func,
        router_aux_loss_coef=0.1,
    )
    return decide(logits_TE, config, token_mask_T=mask_T)


def switch_loss_of(*args: Any, **kwargs: Any) -> Tensor:
    return switch_loss(routing_of(*args, **kwargs).routed)


def z_loss_of(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    return z_loss(routing_of(logits_TE, mask_T=mask_T).routed.logsumexp_T, mask_T)


def uniform_logits(num_rounds: int = 1) -> Tensor:
    """As many tokens that want each expert and its successor, with scores that differ."""
    return torch.cat([2 * torch.eye(E) + torch.eye(E).roll(1, 0) for _ in range(num_rounds)])


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 6])
def test_one_layer_gives_the_figure_of_transformers(with_mask: bool, num_experts_per_tok: int) -> None:
    logits_TE = torch.randn(40, E, requires_grad=True)
    mask_BS = torch.rand(4, 10) < 0.7 if with_mask else None
    theirs = load_balancing_loss_func((logits_TE,), E, num_experts_per_tok, None if mask_BS is None else mask_BS.long())
    mask_T = None if mask_BS is None else mask_BS.flatten()
    ours = switch_loss_of(logits_TE, num_experts_per_tok=num_experts_per_tok, mask_T=mask_T)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits_TE)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_a_uniform_load_costs_k_and_a_collapsed_one_more(scoring_func: str) -> None:
    uniform = switch_loss_of(uniform_logits(), scoring_func)
    assert uniform.item() == pytest.approx(K)
    collapsed = switch_loss_of(torch.tensor([[9.0, 9.0, 0, 0, 0, 0]]).expand(6, -1), scoring_func)
    assert collapsed.item() > 1.2 * K
    one = torch.tensor([[50.0, 0, 0, 0, 0, 0]]).expand(6, -1)
    assert switch_loss_of(one, num_experts_per_tok=1).item() == pytest.approx(E)


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_a_step_down_the_loss_takes_load_off_the_busiest_expert(scoring_func: str) -> None:
    logits_TE = (torch.randn(200, E) + torch.tensor([2.0, 0, 0, 0, 0, 0])).requires_grad_()
    routing = routing_of(logits_TE, scoring_func)
    (gradient_TE,) = torch.autograd.grad(switch_loss(routing.routed), logits_TE)
    assert routing.expert_ids_TK.flatten().bincount().argmax() == 0
    assert (gradient_TE[:, 0] > 0).all()


def test_sigmoid_scores_cannot_shrink_their_way_out() -> None:
    logits_TE = torch.randn(50, E) - 4
    shrunk = [switch_loss_of(logits_TE - shift, "sigmoid").item() for shift in (0.0, 3.0, 6.0)]
    # The scores fall twenty-fold at each step; scaled to sum to one they hardly change.
    assert shrunk == pytest.approx([shrunk[0]] * 3, rel=0.02)


@pytest.mark.parametrize("scoring_func", ["softmax", "sigmoid"])
def test_padding_is_no_load(scoring_func: str) -> None:
    logits_TE = torch.randn(30, E)
    mask_T = torch.rand(30) < 0.5
    kept = routing_of(logits_TE[mask_T], scoring_func)
    garbage_TE = logits_TE.masked_fill(~mask_T[:, None], 1e4)
    masked = routing_of(garbage_TE, scoring_func, mask_T=mask_T)
    torch.testing.assert_close(switch_loss(masked.routed), switch_loss(kept.routed))
    torch.testing.assert_close(z_loss(masked.routed.logsumexp_T, mask_T), z_loss(kept.routed.logsumexp_T))
    assert torch.equal(expert_load([masked]), expert_load([kept]))


def test_nothing_but_padding_costs_nothing() -> None:
    logits_TE = torch.randn(4, E, requires_grad=True)
    mask_T = torch.zeros(4, dtype=torch.bool)
    loss = switch_loss_of(logits_TE, mask_T=mask_T) + z_loss_of(logits_TE, mask_T)
    loss.backward()
    assert loss.item() == 0
    assert logits_TE.grad is not None
    assert not logits_TE.grad.any()


def test_load_from_elsewhere_replaces_that_of_the_routing() -> None:
    halves = torch.randn(2, 30, E)
    routings = [routing_of(half) for half in halves]
    load_E = expert_load(routings).sum(dim=0)
    # P is linear in the tokens, so with f over both halves the losses average to the loss of all tokens.
    together = switch_loss_of(halves.flatten(0, 1))
    apart = [switch_loss(routing.routed, load_E) for routing in routings]
    torch.testing.assert_close(torch.stack(apart).mean(), together)


def test_load_of_each_layer() -> None:
    routings = [routing_of(torch.randn(9, E)) for _ in range(3)]
    load_LE = expert_load(routings)
    assert load_LE.dtype == torch.int64
    assert load_LE.tolist() == [torch.bincount(r.expert_ids_TK.flatten(), minlength=E).tolist() for r in routings]
    assert torch.equal(sum_over_ranks(load_LE), load_LE)


def test_z_loss_in_closed_form() -> None:
    # Equal logits c: the log-sum-exp is c + log E.
    c = torch.tensor([-2.0, 0.0, 3.0])
    expected = (c + torch.log(torch.tensor(float(E)))).square().mean()
    torch.testing.assert_close(z_loss_of(c[:, None].expand(3, E)), expected)
    # And not the square of the mean, nor the mean of the squares of logits.
    logits_TE = torch.randn(7, E)
    torch.testing.assert_close(z_loss_of(logits_TE), logits_TE.exp().sum(dim=1).log().pow(2).sum() / 7)


def test_losses_are_fp32_under_autocast() -> None:
    logits_TE = torch.randn(20, E)
    exact = switch_loss_of(logits_TE), z_loss_of(logits_TE)
    with torch.autocast("cpu", torch.bfloat16):
        again = switch_loss_of(logits_TE), z_loss_of(logits_TE)
    assert all(loss.dtype == torch.float32 for loss in again)
    assert all(torch.equal(left, right) for left, right in zip(exact, again, strict=True))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.floats(0.0001, 1))
def test_bias_update_by_hand(load: list[int], rate: float) -> None:
    start = torch.randn(len(load))
    bias_E = start.clone()
    update_selection_bias(bias_E, torch.tensor(load), rate)
    mean = sum(load) / len(load)
    for e, count in enumerate(load):
        step = 0.0 if count == mean else rate if count < mean else -rate
        assert bias_E[e].item() == pytest.approx(start[e].item() + step, abs=1e-6)


@pytest.mark.parametrize("load", [0, 3, 2**24 + 1, 10**12 + 7])  # the last two are no fp32 numbers
def test_a_balanced_load_leaves_the_bias_alone(load: int) -> None:
    bias_E = torch.randn(7)
    before_E = bias_E.clone()
    update_selection_bias(bias_E, torch.full((7,), load), 0.1)
    assert torch.equal(bias_E, before_E)


def test_bias_updates_balance_a_skewed_router() -> None:
    logits_TE = torch.randn(400, E) + torch.tensor([3.0, 2.0, 0, 0, -1.0, -2.0])
    config = PathMoEConfig(num_experts=E, num_experts_per_tok=K)
    bias_E = torch.zeros(E)
    for _ in range(800):
        load_E = decide(logits_TE, config, bias_E).routed.load_E
        update_selection_bias(bias_E, load_E, 0.001)
    before_E = decide(logits_TE, config).routed.load_E
    assert before_E.max() > 2 * before_E.float().mean()
    assert load_E.max() < 1.1 * load_E.float().mean()
