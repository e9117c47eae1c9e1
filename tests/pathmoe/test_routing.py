"""From logits to a decision: closed forms, plain Python, and what neither precision nor NaN may change."""

# Shapes: T tokens, E experts, K experts per token.

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
from pathmoe.routing import decide, expert_scores, tokens_per_expert

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
    assert torch.equal(ours.expert_ids_TK, expert_ids_TK)
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
    scores_TE = expert_scores(logits_TE, scoring_func)
    assert torch.equal(biased.expert_weights_TK, scores_TE.gather(1, biased.expert_ids_TK))
    assert torch.equal(biased.logits_TE, logits_TE)


@pytest.mark.parametrize(("num_tokens", "num_experts_per_tok"), [(12, 2), (7, 4), (1, 6), (5, 1)])
def test_forced_uniform_routing_loads_every_expert_equally(num_tokens: int, num_experts_per_tok: int) -> None:
    config = config_of(num_experts_per_tok=num_experts_per_tok, force_uniform_routing=True)
    # All tokens want the same experts.
    logits_TE = torch.arange(6.0).expand(num_tokens, 6).clone().requires_grad_()
    routing = decide(logits_TE, config)
    load = tokens_per_expert(routing.expert_ids_TK, 6).tolist()
    assert max(load) - min(load) <= 1
    assert all(len(set(row)) == num_experts_per_tok for row in routing.expert_ids_TK.tolist())
    # The weights are still the router's.
    chosen_TK = logits_TE.softmax(dim=-1).gather(1, routing.expert_ids_TK)
    torch.testing.assert_close(routing.expert_weights_TK, chosen_TK / chosen_TK.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("scoring_func", SCORING)
def test_fp32_under_autocast_and_from_half_precision_logits(scoring_func: str) -> None:
    config = config_of(scoring_func=scoring_func)
    logits_TE = torch.randn(20, 6).bfloat16()
    exact = decide(logits_TE.float(), config)
    with torch.autocast("cpu", torch.bfloat16):
        routing = decide(logits_TE, config)
    assert routing.expert_weights_TK.dtype == torch.float32
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
    assert routing.expert_weights_TK[3].isnan().any()
    if num_nans == 6 or norm_topk_prob or scoring_func == "softmax":
        assert routing.expert_weights_TK[3].isnan().all()
    others = torch.arange(8) != 3
    assert torch.equal(routing.expert_weights_TK[others], clean.expert_weights_TK[others])
    assert torch.equal(routing.expert_ids_TK[others], clean.expert_ids_TK[others])
    assert ((routing.expert_ids_TK >= 0) & (routing.expert_ids_TK < 6)).all()


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
    chosen_TE = torch.zeros(4, 6, dtype=torch.bool).scatter(1, routing.expert_ids_TK, True)
    # Renormalised softmax weights are those of a softmax over the chosen.
    assert logits_TE.grad is not None
    assert (logits_TE.grad[chosen_TE] != 0).all()
    torch.testing.assert_close(logits_TE.grad[~chosen_TE], torch.zeros(16), atol=1e-6, rtol=0)


@st.composite
def choices(draw: st.DrawFn) -> tuple[Tensor, int, list[bool]]:
    num_experts, num_tokens = draw(st.integers(1, 9)), draw(st.integers(0, 12))
    num_experts_per_tok = draw(st.integers(1, num_experts))
    rows = [draw(st.permutations(range(num_experts)))[:num_experts_per_tok] for _ in range(num_tokens)]
    expert_ids_TK = torch.tensor(rows, dtype=torch.int64).view(num_tokens, num_experts_per_tok)
    return expert_ids_TK, num_experts, [draw(st.booleans()) for _ in range(num_tokens)]


@given(choices())
def test_tokens_per_expert_counts_what_is_not_masked(case: tuple[Tensor, int, list[bool]]) -> None:
    expert_ids_TK, num_experts, mask = case
    rows = expert_ids_TK.tolist()
    counted = [sum(e in row for row, keep in zip(rows, mask, strict=True) if keep) for e in range(num_experts)]
    mask_T = torch.tensor(mask, dtype=torch.bool)
    assert tokens_per_expert(expert_ids_TK, num_experts, mask_T).tolist() == counted
    everything = [sum(e in row for row in rows) for e in range(num_experts)]
    load_E = tokens_per_expert(expert_ids_TK, num_experts)
    assert load_E.tolist() == everything
    assert load_E.dtype == torch.int64
