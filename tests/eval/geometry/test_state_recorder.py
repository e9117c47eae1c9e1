"""States as routers are handed them, in every family, beside the routing that a recorder alone sees."""

# Shapes: N tokens, L MoE layers, D hidden.

import numpy as np
import pytest
import torch

from pathmoe_eval.geometry.state_recorder import StateRecorder
from pathmoe_eval.traces.recorder import RoutingRecorder
from tests.eval.conftest import BuildMoE

INPUTS = torch.arange(2, 26).view(2, 12)


def test_routing_is_what_a_recorder_alone_sees(moe_name: str, build_moe: BuildMoE) -> None:
    model = build_moe(moe_name)
    with torch.no_grad(), StateRecorder(model, [0]) as states, RoutingRecorder(model, logits=True) as alone:
        model(input_ids=INPUTS)
    taken, expected = states.take(), alone.take()
    assert (taken.routing.expert_ids_NLK == expected.expert_ids_NLK).all()
    assert taken.routing.logits_NLE is not None and expected.logits_NLE is not None
    assert (taken.routing.logits_NLE == expected.logits_NLE).all()
    assert taken.states[0].shape == (24, 32) and taken.states[0].dtype == np.float32


def test_several_forwards_are_joined_and_forgotten(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    with torch.no_grad(), StateRecorder(model, [1, 3]) as recorder:
        model(input_ids=INPUTS[:1])
        model(input_ids=INPUTS[1:, :5])
        both = recorder.take()
        model(input_ids=INPUTS[1:, :5])
        last = recorder.take()
    assert both.states.keys() == {1, 3} and len(both.states[1]) == 17
    assert (both.states[3][12:] == last.states[3]).all()


def test_the_model_is_left_as_it_was(build_moe: BuildMoE) -> None:
    model = build_moe("olmoe")
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with torch.no_grad(), StateRecorder(model, [0, 2]) as recorder:
        model(input_ids=INPUTS)
    model(input_ids=INPUTS)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert len(recorder.take().states[2]) == 24


def test_no_forward_is_told(build_moe: BuildMoE) -> None:
    with (
        StateRecorder(build_moe("olmoe"), [0]) as recorder,
        pytest.raises(ValueError, match="must have seen a forward since the last take"),
    ):
        recorder.take()
