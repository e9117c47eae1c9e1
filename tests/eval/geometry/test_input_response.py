"""Responses to inputs, against the plain definitions on the tokens that count."""

# Shapes: N tokens, L MoE layers, D hidden, E experts, K experts per token, S tokens of an input.

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pathmoe_eval.geometry.input_response import InputResponse, input_response
from pathmoe_eval.geometry.inputs import VariedInput
from pathmoe_eval.geometry.router_map import router_maps
from pathmoe_eval.geometry.state_recorder import StateRecorder
from tests.eval.conftest import BuildMoE

INPUTS = [
    VariedInput(token_ids_S=np.arange(2, 2 + length), is_counted_S=np.arange(length) >= first)
    for length, first in ((9, 0), (12, 4), (7, 6))
]


def response(model: Any, layers: list[int]) -> list[InputResponse]:
    return input_response(model, INPUTS, ["a", "b", "a"], router_maps(model), layers)


def test_figures_are_of_the_tokens_that_count(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    (found,) = response(model, [5])
    states, logits, usage = [], [], []
    for one in INPUTS:
        with StateRecorder(model, [5]) as recorder, torch.no_grad():
            model(input_ids=torch.from_numpy(one.token_ids_S)[None])
        taken = recorder.take()
        assert taken.routing.logits_NLE is not None
        states.append(taken.states[5][one.is_counted_S])
        logits.append(taken.routing.logits_NLE[one.is_counted_S, 5])
        usage.append(np.bincount(taken.routing.expert_ids_NLK[one.is_counted_S, 5].ravel(), minlength=6))
    states_ND, logits_NE = np.concatenate(states), np.concatenate(logits)
    softmax_NE = torch.softmax(torch.from_numpy(logits_NE).double(), dim=-1).numpy()
    assert found.layer == 5
    assert found.confidence == pytest.approx(softmax_NE.max(axis=1).mean())
    assert found.logit_size == pytest.approx(np.sqrt(logits_NE.var(axis=1).mean()), rel=1e-5)
    values = np.linalg.svd(states_ND, compute_uv=False)
    assert found.state_energy == pytest.approx(values[0] ** 2 / (values**2).sum(), rel=1e-4)
    normed = np.stack([of_one / np.linalg.norm(of_one) for of_one in usage])
    assert found.usage_within.value == pytest.approx(normed[0] @ normed[2])
    assert found.usage_across.value == pytest.approx((normed[0] @ normed[1] + normed[2] @ normed[1]) / 2)
    router = router_maps(model)[5]
    assert router is not None and router.centred_ED is not None
    expected = (logits_NE.var(axis=1).sum() * 6) * 32 / ((router.centred_ED**2).sum() * (states_ND**2).sum())
    assert found.alignment == pytest.approx(expected, rel=1e-4)


def test_layers_that_follow_are_left_out(build_moe: BuildMoE) -> None:
    assert [one.layer for one in response(build_moe("mono_b8"), list(range(9)))] == [0, 8]


def test_a_router_without_a_matrix_has_no_alignment(build_moe: BuildMoE) -> None:
    (found,) = response(build_moe("recurrent"), [2])
    assert found.alignment is None and found.logit_energy is None and 0 < found.confidence <= 1


def test_tokens_that_look_alike_are_routed_alike_in_any_order(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[:1].clone().expand(40, -1))
    (found,) = response(model, [5])
    assert found.state_energy == pytest.approx(1) and found.logit_energy == pytest.approx(1)
    assert found.usage_within.value == pytest.approx(1) and found.usage_across.value == pytest.approx(1)
    (turned,) = input_response(
        model, [replace(one, token_ids_S=one.token_ids_S[::-1].copy()) for one in INPUTS], ["a", "b", "a"],
        router_maps(model), [5],
    )  # fmt: skip
    assert turned.confidence == pytest.approx(found.confidence)


def test_what_is_added_to_all_logits_changes_nothing(build_moe: BuildMoE) -> None:
    plain, moved = build_moe("path_b4"), build_moe("path_b4")
    with torch.no_grad():
        moved.model.routers[1].weight.add_(torch.randn(32))
    (before,), (after,) = response(plain, [5]), response(moved, [5])
    for name in ("confidence", "logit_size", "alignment", "state_energy", "logit_energy"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-4), name


def test_a_router_that_prefers_nothing_is_as_unsure_as_can_be(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    with torch.no_grad():
        model.model.routers[1].weight.copy_(torch.randn(32).expand(6, -1))
    (found,) = response(model, [5])
    assert found.confidence == pytest.approx(1 / 6, rel=1e-5) and found.logit_size < 1e-5
