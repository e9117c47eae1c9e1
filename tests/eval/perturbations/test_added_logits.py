"""Numbers added to router logits, on real models: the same from layer to layer, and the model left as it was."""

# Shapes: N tokens, L MoE layers, E experts.

import pytest
import torch

from pathmoe_eval.perturbations.added_logits import added_logits
from tests.eval.conftest import BuildMoE
from tests.eval.perturbations.test_router_interventions import recorded, state_of, tokens


def test_what_is_added_is_what_is_recorded_more(build_moe: BuildMoE, moe_name: str) -> None:
    model, input_ids = build_moe(moe_name), tokens(2, 7)
    before = state_of(model)
    free, _ = recorded(model, input_ids)
    with added_logits(model, {0: lambda shape, device: torch.arange(float(shape[1]), device=device).expand(shape)}):
        found, _ = recorded(model, input_ids)
    assert found.logits_NLE[:, 0] - free.logits_NLE[:, 0] == pytest.approx(
        torch.arange(6.0).expand(14, 6).numpy(), abs=1e-4
    )
    assert state_of(model) == before


def test_one_number_for_all_experts_changes_no_softmax(build_moe: BuildMoE) -> None:
    model, input_ids = build_moe("olmoe"), tokens(2, 7)
    _, free = recorded(model, input_ids)
    with added_logits(model, {layer: lambda shape, device: torch.full(shape, 3.0) for layer in range(3)}):
        _, shifted = recorded(model, input_ids)
    assert shifted.numpy() == pytest.approx(free.numpy(), abs=1e-4)
