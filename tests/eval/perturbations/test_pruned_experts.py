"""Experts taken away from routers, on real models: the choice is the router's own among those that are kept."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

from typing import Any

import numpy as np
import pytest

from pathmoe_eval.perturbations.pruned_experts import pruned_experts
from tests.eval.conftest import BuildMoE
from tests.eval.perturbations.test_router_interventions import recorded, state_of, tokens

KEPT = [1, 2, 4, 5]


def built(name: str, build_moe: BuildMoE) -> Any:
    return build_moe(name, **{"n_group": 1} if name == "deepseek_v3" else {})


def test_all_experts_kept_change_nothing(build_moe: BuildMoE, moe_name: str) -> None:
    model, input_ids = built(moe_name, build_moe), tokens(2, 7)
    before = state_of(model)
    free, free_logits = recorded(model, input_ids)
    with pruned_experts(model, {0: range(6)}):
        found, logits = recorded(model, input_ids)
    assert logits.equal(free_logits) and state_of(model) == before
    np.testing.assert_array_equal(found.expert_ids_NLK, free.expert_ids_NLK)


def test_the_highest_of_the_kept_are_chosen(build_moe: BuildMoE, moe_name: str) -> None:
    if moe_name == "deepseek_v3":
        pytest.skip("its choice is by biased scores, see below")
    model, input_ids = built(moe_name, build_moe), tokens(2, 7)
    free, free_logits = recorded(model, input_ids)
    with pruned_experts(model, {0: KEPT}):
        found, logits = recorded(model, input_ids)
    # The first layer is given the same hidden states.
    kept_NE = np.where(np.isin(np.arange(6), KEPT), free.logits_NLE[:, 0], -np.inf)
    np.testing.assert_array_equal(found.expert_ids_NLK[:, 0], np.argsort(-kept_NE, axis=1, kind="stable")[:, :2])
    assert np.isneginf(found.logits_NLE[:, 0][:, [0, 3]]).all()
    assert not logits.equal(free_logits)


def test_several_layers_are_pruned_each_by_its_own_list(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    with pruned_experts(model, {3: [0, 1], 8: [4, 5, 2]}):
        found, _ = recorded(model, tokens(2, 7))
    assert set(found.expert_ids_NLK[:, 3].flat) == {0, 1}
    assert set(found.expert_ids_NLK[:, 8].flat) <= {4, 5, 2}
    assert len(set(found.expert_ids_NLK[:, 4].flat)) > 3


@pytest.mark.parametrize("name", ["deepseek_v3", "path_b4"])
def test_no_bias_of_the_choice_lifts_a_pruned_expert(name: str, build_moe: BuildMoE) -> None:
    fields = {"router_bias_update_rate": 0.001} if name == "path_b4" else {"n_group": 1}
    model = build_moe(name, **fields)
    biases = [bias for name, bias in model.named_buffers() if name.endswith(("selection_bias_E", "correction_bias"))]
    for bias in biases:
        bias[0] = 5.0
    assert biases and set(recorded(model, tokens(2, 7))[0].expert_ids_NLK[:, 0].min(axis=1)) == {0}
    before = state_of(model)
    with pruned_experts(model, {0: KEPT}):
        found, _ = recorded(model, tokens(2, 7))
    assert set(found.expert_ids_NLK[:, 0].flat) <= set(KEPT) and state_of(model) == before


def test_fewer_than_a_token_needs_are_refused(build_moe: BuildMoE) -> None:
    model = build_moe("olmoe")
    with pruned_experts(model, {0: [3]}), pytest.raises(ValueError, match="keep more"):
        recorded(model, tokens(1, 3))


@pytest.mark.parametrize("expert", [-1, 6])
def test_an_expert_that_is_not_there_is_refused(expert: int, build_moe: BuildMoE) -> None:
    model = build_moe("olmoe")
    with (
        pytest.raises(ValueError, match=rf"^kept \({expert}\) must be an expert from 0 to 5; change it$"),
        pruned_experts(model, {0: [0, 1, expert]}),
    ):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())
