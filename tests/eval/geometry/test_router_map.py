"""What a router sees: against the logits of real routers, ours and others', and in planted cases."""

# Shapes: N and T tokens, L MoE layers, D hidden, E experts, P router width, R visible dimensions.

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathmoe_eval.geometry.router_map import RouterMap, linear_map, router_maps
from pathmoe_eval.geometry.state_recorder import StateRecorder
from tests.eval.conftest import BuildMoE
from tests.eval.geometry.conftest import random_rotation


def recorded(model: torch.nn.Module) -> tuple[StateRecorder, dict[int, NDArray[np.float32]], NDArray[np.float32]]:
    recorder = StateRecorder(model, range(len(router_maps(model))))
    with recorder, torch.no_grad():
        model(input_ids=torch.arange(2, 26).view(2, 12))
    taken = recorder.take()
    assert taken.routing.logits_NLE is not None
    return recorder, taken.states, taken.routing.logits_NLE


def without_mean(logits_NE: NDArray[np.floating]) -> NDArray[np.floating]:
    return logits_NE - logits_NE.mean(axis=1, keepdims=True)


def test_states_of_other_models_give_their_logits(family: str, build_moe: BuildMoE) -> None:
    model = build_moe(family)
    recorder, states, logits_NLE = recorded(model)
    maps = router_maps(model)
    for layer, (of_layer, router) in enumerate(zip(recorder.routing.layers, maps, strict=True)):
        assert router is not None and router.kind == "linear" and router.centred_ED is not None
        expected_NE = states[layer] @ router.centred_ED.T
        assert of_layer.router is not None
        biases = [bias for name, bias in of_layer.router.named_parameters() if name == "bias"]
        for bias_E in biases:
            expected_NE = expected_NE + bias_E.detach().numpy()
        assert without_mean(logits_NLE[:, layer]) == pytest.approx(without_mean(expected_NE), abs=2e-4)


def test_states_of_our_models_give_their_logits(router: str, build_moe: BuildMoE) -> None:
    model = build_moe(router)
    _, states, logits_NLE = recorded(model)
    maps = router_maps(model)
    assert [found is None for found in maps] == [layer % 8 > 0 if router == "mono_b8" else False for layer in range(9)]
    for layer, found in enumerate(maps):
        if found is None or found.centred_ED is None:
            assert found is None or found.kind == "recurrent"
            continue
        product_NE = states[layer] @ found.centred_ED.T
        if found.kind == "linear":
            assert without_mean(logits_NLE[:, layer]) == pytest.approx(product_NE, abs=2e-4)
        else:
            ratio_NE = without_mean(logits_NLE[:, layer]) / product_NE
            assert ratio_NE == pytest.approx(np.broadcast_to(ratio_NE[:, :1], ratio_NE.shape), rel=1e-2)


@pytest.mark.parametrize("router_name", ["path_b4", "low_rank", "x_moe", "recurrent"])
def test_what_lies_in_the_null_space_changes_no_logit(router_name: str, build_moe: BuildMoE) -> None:
    model = build_moe(router_name, router_dim=5) if router_name in ("x_moe", "recurrent") else build_moe(router_name)
    found = router_maps(model)[1]
    assert found is not None and len(found.visible_RD) < found.visible_RD.shape[1]
    router = model.model.router_of(1)
    states_ND = np.random.default_rng(0).normal(size=(6, 32))
    _, hidden_ND = found.split(np.random.default_rng(1).normal(size=(6, 32)))
    state_TP = torch.zeros(6, 5) if router_name == "recurrent" else None
    before, after = (
        router.logits(torch.tensor(x_ND, dtype=torch.float32), state_TP)[0].detach().numpy()
        for x_ND in (states_ND, states_ND + 10 * hidden_ND)
    )
    assert without_mean(after) == pytest.approx(without_mean(before), abs=1e-4)


@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 1000))
def test_a_split_is_orthogonal_and_whole(num_experts: int, hidden_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = linear_map(rng.normal(size=(num_experts, hidden_size)))
    assert len(found.visible_RD) == min(num_experts - 1, hidden_size)
    states_ND = rng.normal(size=(5, hidden_size))
    seen_NR, rest_ND = found.split(states_ND)
    assert seen_NR @ found.visible_RD + rest_ND == pytest.approx(states_ND, abs=1e-9)
    assert rest_ND @ found.visible_RD.T == pytest.approx(0, abs=1e-9)


@given(st.integers(2, 6), st.integers(2, 8), st.integers(0, 1000))
def test_a_number_added_to_all_logits_changes_nothing(num_experts: int, hidden_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight_ED = rng.normal(size=(num_experts, hidden_size))
    plain, shifted = linear_map(weight_ED), linear_map(weight_ED + rng.normal(size=hidden_size))
    assert plain.centred_ED == pytest.approx(shifted.centred_ED, abs=1e-12)
    assert projector(plain) == pytest.approx(projector(shifted), abs=1e-8)


@given(st.integers(2, 6), st.integers(2, 8), st.integers(0, 1000))
def test_a_rotation_of_the_hidden_space_rotates_what_is_seen(num_experts: int, hidden_size: int, seed: int) -> None:
    weight_ED = np.random.default_rng(seed).normal(size=(num_experts, hidden_size))
    rotation_DD = random_rotation(hidden_size, seed)
    rotated = linear_map(weight_ED @ rotation_DD)
    expected_DD = rotation_DD.T @ projector(linear_map(weight_ED)) @ rotation_DD
    assert projector(rotated) == pytest.approx(expected_DD, abs=1e-8)


def projector(router: RouterMap) -> NDArray[np.float64]:
    return router.visible_RD.T @ router.visible_RD


@pytest.mark.parametrize("value", [1.0, 0.1])
def test_equal_rows_see_nothing(value: float) -> None:
    found = linear_map(np.full((6, 5), value))
    assert len(found.visible_RD) == 0 and found.centred_ED is not None and not found.centred_ED.any()
