"""What is recorded against what each model's experts were given, caught by wrapping their forward by hand."""

# Shapes: T tokens of one forward, N tokens of all, L MoE layers, E experts, K experts per token, D hidden, B batch,
# S sequence.

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathmoe_eval.traces.recorder import RoutingRecorder

VOCABULARY = 40
MOE_LAYERS = {"qwen2_moe": 2, "qwen3_moe": 2, "deepseek_v3": 2}
"""Of the families that have dense layers too; of others it is 3."""


def tokens(*shape: int) -> Tensor:
    return torch.randint(2, VOCABULARY, shape)


def generate(model: Any, input_ids: Tensor, new_tokens: int = 4) -> Tensor:
    mask = torch.ones_like(input_ids)
    return model.generate(input_ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)


@contextmanager
def experts_calls(model: nn.Module) -> Iterator[list[list[tuple[Any, ...]]]]:
    """Copies of what the experts of each layer are given, one list a layer, without a hook."""
    calls: list[list[tuple[Any, ...]]] = []
    wrapped = []
    for name, experts in model.named_modules():
        if name.endswith(".experts"):
            calls.append([])
            experts.forward = caught(experts.forward, calls[-1])
            wrapped.append(experts)
    yield calls
    for experts in wrapped:
        del experts.forward


def caught(forward: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Callable[..., Any]:
    def catch(*args: Any, **kwargs: Any) -> Any:
        calls.append(tuple(arg.detach().clone() for arg in args[:3]))
        return forward(*args, **kwargs)

    return catch


def assert_recorded(recorded: Any, calls: list[list[tuple[Any, ...]]]) -> None:
    """Token by token: the experts that each layer was given, sorted by weight."""
    ids, weights = [], []
    for forward in zip(*calls, strict=True):
        for token in range(len(forward[0][1])):
            rows = [
                sorted(zip(w[token].tolist(), e[token].tolist(), strict=True), key=lambda pair: -pair[0])
                for _, e, w in forward
            ]
            ids.append([[expert for _, expert in row] for row in rows])
            weights.append([[weight for weight, _ in row] for row in rows])
    assert recorded.expert_ids_NLK.dtype == np.uint8
    assert recorded.expert_ids_NLK.tolist() == ids
    assert recorded.weights_NLK.tolist() == weights


@torch.no_grad()
def formula(model: nn.Module, calls: list[list[tuple[Any, ...]]]) -> Tensor:
    """Router logits [N, L, E] from the hidden states that the experts were given, which their router was given too."""
    blocks = [model.get_submodule(n.rpartition(".")[0]) for n, _ in model.named_modules() if n.endswith(".experts")]
    layers = []
    for block, of_layer in zip(blocks, calls, strict=True):
        router: Any = block.gate if hasattr(block, "gate") else block.router
        linear = getattr(router, "classifier", getattr(router, "layer", router))
        bias = getattr(linear, "bias", None)
        layers.append(torch.cat([F.linear(x.flatten(0, -2), linear.weight, bias) for x, _, _ in of_layer]))
    return torch.stack(layers, dim=1)


def test_records_what_the_experts_of_every_family_are_given(build_moe: Callable[..., Any], family: str) -> None:
    model, num_layers = build_moe(family), MOE_LAYERS.get(family, 3)
    input_ids = tokens(2, 7)
    with RoutingRecorder(model, weights=True, logits=True) as recorder, experts_calls(model) as calls:
        with torch.no_grad():
            model(input_ids)
        scored, scoring_calls = recorder.take(), [of_layer.copy() for of_layer in calls]
        for of_layer in calls:
            of_layer.clear()
        generated = generate(model, input_ids)
        steps = recorder.take()
    assert len(recorder.layers) == num_layers
    assert recorder.router_of_layer == tuple(range(num_layers))
    for recorded, its_calls in ((scored, scoring_calls), (steps, calls)):
        assert_recorded(recorded, its_calls)
        np.testing.assert_allclose(recorded.logits_NLE, formula(model, its_calls).numpy(), rtol=1e-5, atol=1e-5)
    assert scored.shapes == ((2, 7),)
    assert steps.shapes == ((2, 7), (2, 1), (2, 1), (2, 1))
    assert steps.rows_by_sequence().shape == generated[:, :-1].shape


def test_records_what_our_experts_are_given(build_moe: Callable[..., Any], router: str) -> None:
    model = build_moe(router, first_k_dense_replace=1, intermediate_size=16)
    input_ids = tokens(2, 7)
    with RoutingRecorder(model, weights=True, logits=True) as recorder, experts_calls(model) as calls:
        model(input_ids)
        generated = generate(model, input_ids)
        recorded = recorder.take()
        model(generated[:, :-1])
        whole = recorder.take()
    assert_recorded(recorded, [of_layer[:-1] for of_layer in calls])
    sharing = model.config.sharing
    assert recorder.router_of_layer == sharing.router_of_layer
    # Each layer, also one that follows, has its decider's logits: those that transformers' own recording sees.
    deciding = model(generated[:, :-1], output_router_logits=True).router_logits
    for layer, decider in enumerate(sharing.decider_of_layer):
        expected_TE = deciding[sharing.deciding_layers.index(decider)].detach().numpy()
        np.testing.assert_allclose(whole.logits_NLE[:, layer], expected_TE, rtol=1e-5, atol=1e-5)
    # The first row of `recorded` that is generation's comes behind the 14 that were scored.
    steps = np.concatenate([14 + np.arange(14).reshape(2, 7), 28 + np.arange(6).reshape(3, 2).T], axis=1)
    assert (recorded.rows_by_sequence()[:, 7:] == steps).all()
    assert (recorded.expert_ids_NLK[steps.ravel()] == whole.expert_ids_NLK).all()
    np.testing.assert_allclose(recorded.logits_NLE[steps.ravel()], whole.logits_NLE, rtol=1e-4, atol=1e-4)


def test_weights_decide_the_order_where_a_bias_decides_the_choice(build_moe: Callable[..., Any]) -> None:
    model = build_moe("path_b4", router_bias_update_rate=0.1, scoring_func="sigmoid", norm_topk_prob=False)
    for module in model.modules():
        if getattr(module, "selection_bias_E", None) is not None:
            nn.init.normal_(module.selection_bias_E)
    with RoutingRecorder(model, weights=True, logits=True) as recorder, experts_calls(model) as calls:
        model(tokens(3, 20))
    recorded = recorder.take()
    assert_recorded(recorded, calls)
    assert any((weights_TK[:, 0] < weights_TK[:, 1]).any() for ((_, _, weights_TK),) in calls)
    # The weights are scores, so the logits have no bias in them.
    scores = 1 / (1 + np.exp(-recorded.logits_NLE))
    chosen = np.take_along_axis(scores, recorded.expert_ids_NLK.astype(np.int64), axis=-1)
    np.testing.assert_allclose(recorded.weights_NLK, chosen, rtol=1e-5)


def test_logits_hold_the_noise_that_the_choice_saw(build_moe: Callable[..., Any]) -> None:
    model = build_moe("path_b4", router_noise_std=1.0).train()
    with RoutingRecorder(model, logits=True) as recorder:
        output = model(tokens(2, 7), noise_seed=3)
    logits_NLE = torch.stack([routing.logits_TE for routing in output.routings], dim=1).detach().numpy()
    np.testing.assert_array_equal(recorder.take().logits_NLE, logits_NLE)
