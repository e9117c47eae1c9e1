"""The loss of pruned models, against forwards of their own."""

# Shapes: S tokens, L MoE layers, K experts per token.

from typing import Any

import numpy as np
import pytest
import torch

from pathmoe_eval.geometry.pruned_loss import most_used, pruned_losses
from pathmoe_eval.perturbations.pruned_experts import pruned_experts
from tests.eval.conftest import BuildMoE

PROMPTS = [np.array([3, 5, 7]), np.array([2, 9, 4, 6, 8])]
OWN = [np.array([4, 4]), np.array([7, 3, 2])]
OTHER = [np.array([9]), np.array([8, 8])]
KEPT = {0: [0, 1, 2], 1: [1, 2, 3], 2: [3, 4, 5]}


def nats(model: Any, ids: np.ndarray) -> list[float]:
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=torch.from_numpy(ids)[None]).logits[0].double(), dim=-1)
    return [-log_p[place, token].item() for place, token in enumerate(ids[1:])]


def test_losses_are_those_of_pruned_forwards(build_moe: BuildMoE) -> None:
    model = build_moe("olmoe")
    found = pruned_losses(model, PROMPTS, {"own": OWN, "other": OTHER}, KEPT, [0, 2])
    assert [(one.num_layers, one.num_kept) for one in found] == [(0, 3), (2, 3)]
    for one, pruned in zip(found, ({}, {1: KEPT[1], 2: KEPT[2]}), strict=True):
        with pruned_experts(model, pruned):
            own = [nats(model, np.concatenate([a, b])) for a, b in zip(PROMPTS, OWN, strict=True)]
            other = [nats(model, np.concatenate([a, b])) for a, b in zip(PROMPTS, OTHER, strict=True)]
        assert one.nats["prompt"] == pytest.approx(np.mean(own[0][:2] + own[1][:4]), rel=1e-5)
        assert one.nats["own"] == pytest.approx(np.mean(own[0][2:] + own[1][4:]), rel=1e-5)
        assert one.nats["other"] == pytest.approx(np.mean(other[0][2:] + other[1][4:]), rel=1e-5)
    assert set(found[0].rise_percent.values()) == {0.0}
    for name, value in found[1].nats.items():
        assert found[1].rise_percent[name] == pytest.approx(100 * (value / found[0].nats[name] - 1))


def test_the_most_used_are_kept() -> None:
    ids = [np.array([[[0, 1], [5, 4]], [[0, 2], [5, 3]]]), np.array([[[0, 2], [5, 4]]])]
    assert most_used(ids, 0, 6, 2) == [0, 2]
    assert most_used(ids, 1, 6, 2) == [4, 5]
    assert most_used(ids, 0, 6, 5) == [0, 1, 2, 3, 4], "of equally used ones the lower ids"


def test_experts_that_are_one_cost_nothing_to_prune(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight.copy_(weight[:1].clone().expand_as(weight))
    found = pruned_losses(model, PROMPTS, {"own": OWN}, {4: [0, 1], 8: [2, 5]}, [0, 1, 2])
    for one in found:
        assert one.rise_percent == pytest.approx({"prompt": 0, "own": 0}, abs=1e-4)
