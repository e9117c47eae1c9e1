"""Sums of router inputs while a model runs, against states recorded at once."""

# Shapes: N tokens, D hidden, L MoE layers.

import copy

import numpy as np
import pytest
import torch

from pathmoe_eval.geometry.directions import alignment, shared_direction
from pathmoe_eval.geometry.moments import singular_directions
from pathmoe_eval.geometry.monitored import GeometrySums
from pathmoe_eval.geometry.router_map import router_maps
from pathmoe_eval.geometry.state_recorder import StateRecorder
from pathmoe_eval.traces.moe_layers import moe_layers
from tests.eval.conftest import BuildMoE
from tests.eval.geometry.test_moments import moments_of

BATCHES = torch.arange(2, 38).view(3, 2, 6)


@pytest.mark.parametrize("name", ["path_b4", "mono_b8", "x_moe", "recurrent"])
def test_figures_are_those_of_all_states(name: str, build_moe: BuildMoE) -> None:
    model = build_moe(name)
    routers = router_maps(model)
    sums = GeometrySums(routers, 32)
    with torch.no_grad(), sums.recording(model), StateRecorder(model, range(9)) as recorder:
        for batch in BATCHES:
            model(input_ids=batch)
    states = recorder.take().states
    found = sums.figures()
    layers = [layer for layer, router in enumerate(routers) if router is not None]
    assert len(found["shared_state_energy"]) == len(layers)
    assert ("alignment" in found) == ("shared_logit_energy" in found) == (name != "recurrent")
    for layer in layers:
        router, directions = routers[layer], singular_directions(moments_of(states[layer]))
        assert router is not None
        shared = shared_direction(directions, router.centred_ED)
        assert found["shared_state_energy"][layer] == pytest.approx(shared.state_energy, rel=1e-4)
        assert found["mean_state_energy"][layer] == pytest.approx(shared.mean_state_energy, rel=1e-4)
        if router.centred_ED is not None:
            aligned = alignment(directions, router.centred_ED)
            assert aligned is not None and shared.logit_energy is not None
            assert found["shared_logit_energy"][layer] == pytest.approx(shared.logit_energy, rel=1e-3)
            assert found["mean_logit_energy"][layer] == pytest.approx(shared.mean_logit_energy, rel=1e-3)
            assert found["alignment"][layer] == pytest.approx(aligned.total, rel=1e-4)


def test_parts_add_up_and_no_hook_is_left(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    routers = router_maps(model)
    parts = [GeometrySums(routers, 32) for _ in BATCHES]
    whole = GeometrySums(routers, 32)
    with torch.no_grad():
        for part, batch in zip(parts, BATCHES, strict=True):
            with part.recording(model), whole.recording(model):
                model(input_ids=batch)
    merged = copy.deepcopy(parts[0])
    for part in parts[1:]:
        merged.merge(part)
    for one, other in zip(merged.moments.values(), whole.moments.values(), strict=True):
        assert one.num_tokens == other.num_tokens == 36
        assert np.allclose(one.sum_D, other.sum_D, rtol=1e-9) and np.allclose(one.gram_DD, other.gram_DD, rtol=1e-9)
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks


def test_sums_are_exact_under_lower_precision(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    sums = GeometrySums(router_maps(model), 32)
    seen: list[torch.Tensor] = []
    block = moe_layers(model)[0].block
    hook = block.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, -2).double()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), sums.recording(model):
        model(input_ids=BATCHES[0])
    hook.remove()
    (x_ND,) = seen
    assert sums.moments[0].gram_DD == pytest.approx((x_ND.T @ x_ND).numpy(), rel=1e-5, abs=1e-4)


def test_states_that_are_not_finite_end_nothing(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    sums = GeometrySums(router_maps(model), 32)
    torch.nn.init.constant_(model.model.embed_tokens.weight, torch.nan)
    with torch.no_grad(), sums.recording(model):
        model(input_ids=BATCHES[0])
    found = sums.figures()
    assert len(found) == 5 and all(np.isnan(list(of_layers.values())).all() for of_layers in found.values())
