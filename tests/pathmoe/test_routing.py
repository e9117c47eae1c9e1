"""From logits to a decision: closed forms, plain Python, and what neither precision nor NaN may change."""

# Shapes: T tokens, E experts, K experts per token, D hidden.

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from pathmoe import PathMoEConfig
from pathmoe.routing import Routing, decide, decide_from_hidden

SCORING = ["softmax", "sigmoid"]


def config_of(**kwargs: Any) -> PathMoEConfig:
    return PathMoEConfig(**{"num_experts": 6, "num_experts_per_tok": 2, **kwargs})


def plain_weights(logits: list[float], config: PathMoEConfig) -> dict[int, float]:
    """Weight of each chosen expert of one token, in plain Python; the softmax without its usual shift."""
    scores = (
        [math.exp(x) for x in logits] if config.scoring_func == "softmax" else [1 / (1 + math.exp(-x)) for x in logits]
    )
    if config.scoring_func == "softmax":
        scores = [score / sum(scores) for score in scores]
    chosen = sorted(range(len(logits)), key=lambda e: (-scores[e], e))[: config.num_experts_per_tok]
    total = sum(scores[e] for e in chosen) if config.norm_topk_prob else 1.0
    return {e: scores[e] / total * config.routed_scaling_factor for e in chosen}


@pytest.mark.parametrize("scoring_func", SCORING)
@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("routed_scaling_factor", [1.0, 2.5])
@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 6])
def test_weights_in_closed_form(
    scoring_func: str, norm_topk_prob: bool, routed_scaling_factor: float, num_experts_per_tok: int
) -> None:
    config = config_of(
        scoring_func=scoring_func,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=routed_scaling_factor,
        num_experts_per_tok=num_experts_per_tok,
    )
    logits_TE = 3 * torch.randn(20, 6)
    routing = decide(logits_TE, config)
    for t, logits in enumerate(logits_TE.tolist()):
        expected = plain_weights(logits, config)
        assert routing.expert_ids_TK[t].tolist() == list(expected)
        assert routing.expert_weights_TK[t].tolist() == pytest.approx(list(expected.values()), rel=1e-5)


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_equals_the_router_of_olmoe(norm_topk_prob: bool) -> None:
    router = OlmoeTopKRouter(
        OlmoeConfig(hidden_size=5, num_experts=6, num_experts_per_tok=2, norm_topk_prob=norm_topk_prob)
    )
    torch.nn.init.normal_(router.weight)
    logits_TE, weights_TK, expert_ids_TK = router(torch.randn(30, 5))
    ours = decide(logits_TE, config_of(norm_topk_prob=norm_topk_prob))
    assert ours.expert_ids_TK.tolist() == expert_ids_TK.tolist()
    torch.testing.assert_close(ours.expert_weights_TK, weights_TK)


@pytest.mark.parametrize("scoring_func", SCORING)
def test_selection_bias_changes_the_choice_and_not_the_weights(scoring_func: str) -> None:
    config = config_of(scoring_func=scoring_func, norm_topk_prob=False)
    logits_TE = torch.randn(50, 6)
    bias_E = torch.tensor([0.0, 0.0, 0.0, 5.0, 0.0, -5.0])
    plain, biased = decide(logits_TE, config), decide(logits_TE, config, bias_E)
    assert (biased.expert_ids_TK[:, 0] == 3).all()
    assert not (biased.expert_ids_TK == 5).any()
    assert (plain.expert_ids_TK == 5).any()
    scores_TE = logits_TE.softmax(dim=-1) if scoring_func == "softmax" else logits_TE.sigmoid()
    torch.testing.assert_close(biased.expert_weights_TK, scores_TE.gather(1, biased.expert_ids_TK.long()))
    assert biased.logits_TE is logits_TE


@pytest.mark.parametrize(("num_tokens", "num_experts_per_tok"), [(12, 2), (7, 4), (1, 6), (5, 1)])
def test_forced_uniform_routing_loads_every_expert_equally(num_tokens: int, num_experts_per_tok: int) -> None:
    config = config_of(num_experts_per_tok=num_experts_per_tok, force_uniform_routing=True)
    # All tokens want the same experts.
    logits_TE = torch.arange(6.0).expand(num_tokens, 6).clone().requires_grad_()
    routing = decide(logits_TE, config)
    load = routing.expert_ids_TK.flatten().bincount(minlength=6).tolist()
    assert routing.routed.load_E.tolist() == load
    assert max(load) - min(load) <= 1
    assert all(len(set(row)) == num_experts_per_tok for row in routing.expert_ids_TK.tolist())
    # The weights are still the router's.
    chosen_TK = logits_TE.softmax(dim=-1).gather(1, routing.expert_ids_TK.long())
    torch.testing.assert_close(routing.expert_weights_TK, chosen_TK / chosen_TK.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("scoring_func", SCORING)
def test_fp32_under_autocast_and_from_half_precision_logits(scoring_func: str) -> None:
    config = config_of(scoring_func=scoring_func)
    logits_TE = torch.randn(20, 6).bfloat16()
    exact = decide(logits_TE.float(), config)
    with torch.autocast("cpu", torch.bfloat16):
        routing = decide(logits_TE, config)
    assert routing.logits_TE is not None
    assert routing.logits_TE.dtype == routing.expert_weights_TK.dtype == torch.float32
    assert torch.equal(routing.expert_ids_TK, exact.expert_ids_TK)
    assert torch.equal(routing.expert_weights_TK, exact.expert_weights_TK)


@pytest.mark.parametrize("scoring_func", SCORING)
@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("num_nans", [1, 6])
def test_nan_logits_give_nan_weights_in_their_row_alone(scoring_func: str, norm_topk_prob: bool, num_nans: int) -> None:
    config = config_of(scoring_func=scoring_func, norm_topk_prob=norm_topk_prob)
    logits_TE = torch.randn(8, 6)
    clean = decide(logits_TE, config)
    poisoned_TE = logits_TE.clone()
    poisoned_TE[3, 6 - num_nans :] = math.nan
    routing = decide(poisoned_TE, config)
    assert routing.expert_weights_TK[3].isnan().all()
    assert routing.expert_ids_TK[3].tolist() == [0, 1]
    others = torch.arange(8) != 3
    assert torch.equal(routing.expert_weights_TK[others], clean.expert_weights_TK[others])
    assert torch.equal(routing.expert_ids_TK[others], clean.expert_ids_TK[others])


def test_scores_that_underflow_give_finite_weights_and_gradients() -> None:
    logits_TE = torch.full((2, 6), -200.0, requires_grad=True)
    routing = decide(logits_TE, config_of(scoring_func="sigmoid"))
    routing.expert_weights_TK.sum().backward()
    assert routing.expert_weights_TK.isfinite().all()
    assert logits_TE.grad is not None
    assert logits_TE.grad.isfinite().all()


def test_gradient_reaches_the_logits_of_the_chosen() -> None:
    logits_TE = torch.randn(4, 6, requires_grad=True)
    routing = decide(logits_TE, config_of())
    (routing.expert_weights_TK * torch.randn(4, 2)).sum().backward()
    chosen_TE = torch.zeros(4, 6, dtype=torch.bool).scatter(1, routing.expert_ids_TK.long(), True)
    # Renormalised softmax weights are those of a softmax over the chosen.
    assert logits_TE.grad is not None
    assert (logits_TE.grad[chosen_TE] != 0).all()
    torch.testing.assert_close(logits_TE.grad[~chosen_TE], torch.zeros(16), atol=1e-6, rtol=0)


@st.composite
def preferences(draw: st.DrawFn) -> tuple[list[list[int]], int, list[bool]]:
    """For each token all experts, the best first; how many it is sent to; and whether it counts."""
    num_experts, num_tokens = draw(st.integers(1, 9)), draw(st.integers(0, 12))
    rows = [draw(st.permutations(range(num_experts))) for _ in range(num_tokens)]
    return rows, draw(st.integers(1, num_experts)), [draw(st.booleans()) for _ in range(num_tokens)]


@given(preferences())
def test_the_load_counts_what_is_not_masked(case: tuple[list[list[int]], int, list[bool]]) -> None:
    rows, num_choices, mask = case
    num_experts = len(rows[0]) if rows else num_choices
    ranks_TE = torch.tensor(rows, dtype=torch.int64).view(-1, num_experts).argsort(dim=-1)
    config, mask_T = config_of(num_experts=num_experts, num_experts_per_tok=num_choices), torch.tensor(mask).bool()
    everything, masked = decide(-ranks_TE, config), decide(-ranks_TE, config, token_mask_T=mask_T)
    chosen = [row[:num_choices] for row in rows]
    assert everything.expert_ids_TK.tolist() == masked.expert_ids_TK.tolist() == chosen
    assert everything.routed.load_E.tolist() == [sum(e in row for row in chosen) for e in range(num_experts)]
    kept = [row for row, keep in zip(chosen, mask, strict=True) if keep]
    assert masked.routed.load_E.tolist() == [sum(e in row for row in kept) for e in range(num_experts)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"scoring_func": "softmax"},
        {"scoring_func": "sigmoid", "norm_topk_prob": False, "routed_scaling_factor": 2.5},
        {"force_uniform_routing": True},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_from_hidden_states_as_from_their_logits(fields: dict[str, Any], masked: bool, dtype: torch.dtype) -> None:
    config = config_of(router_aux_loss_coef=0.1, **fields)
    x_TD, gate_ED = torch.randn(40, 8).to(dtype).requires_grad_(), torch.randn(6, 8).to(dtype).requires_grad_()
    bias_E, mask_T = torch.randn(6) / 4, torch.rand(40) < 0.7 if masked else None
    fused = decide_from_hidden(x_TD, gate_ED, config, bias_E, mask_T)
    exact = decide(x_TD.float() @ gate_ED.float().T, config, bias_E, mask_T)
    assert fused.logits_TE is None
    upstream = [torch.randn_like(exact.expert_weights_TK), torch.randn(40), torch.randn(6)]

    def gradients(routing: Routing) -> tuple[Tensor, ...]:
        routed = routing.routed
        outputs = [routed.weights_TK, routed.logsumexp_T, routed.probability_sum_E]
        return torch.autograd.grad(outputs, [x_TD, gate_ED], upstream)

    for got, want in zip(fused.routed[:-1], exact.routed[:-1], strict=True):
        assert isinstance(got, Tensor)
        assert torch.equal(got, want)
    assert all(torch.equal(*pair) for pair in zip(fused.routed.dispatch, exact.routed.dispatch, strict=True))
    # In half precision both round once, at the end.
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-3, "rtol": 2e-2}
    torch.testing.assert_close(gradients(fused), gradients(exact), **tolerance)
