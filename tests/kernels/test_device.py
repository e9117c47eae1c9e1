"""The ops with their kernels, in Triton's interpreter, against the same ops as a CPU runs them."""

# Shapes: T tokens, E experts, K experts per token, D hidden, F expert width, G = 2F, N = T*K routed rows.

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pathmoe_kernels import RouteRule, device, expert_mlp, route, route_logits, sort_by_expert

T, E, K, D, F = 21, 6, 3, 12, 10

# `expert_mlp` is also the name of a function of the package, and hides the module.
OPS = [sys.modules[f"pathmoe_kernels.{name}"] for name in ("route", "sort", "expert_mlp")]


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls a function with the ops' kernels."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            for module in OPS:
                patch.setattr(module, "runs_triton", lambda tensor: True)
            return function(*arguments)

    return call


def layer(
    rule: RouteRule, from_logits: bool, masked: bool, biased: bool, recompute: bool, inputs: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """A layer's float outputs and gradients, and its integers."""
    x_TD, gate_ED, gate_up_EGD, down_EDF, upstream_TD = (tensor.clone().requires_grad_() for tensor in inputs)
    # Every second of twice as many: the kernels read memory row by row.
    mask_T = (torch.arange(2 * T) % 3 > 0)[::2] if masked else None
    bias_E = torch.linspace(-1, 1, 2 * E)[::2] if biased else None
    options = {"selection_bias_E": bias_E, "token_mask_T": mask_T}
    routed = route_logits(x_TD @ gate_ED.T, rule, **options) if from_logits else route(x_TD, gate_ED, rule, **options)
    y_TD = expert_mlp(x_TD, routed.weights_TK, gate_up_EGD, down_EDF, routed.dispatch, recompute=recompute)
    loss = (y_TD * upstream_TD.detach()).sum() + routed.logsumexp_T.square().sum()
    if rule.probability_sum:
        loss = loss + (routed.probability_sum_E * torch.arange(E)).sum()
    gradients = torch.autograd.grad(loss, [x_TD, gate_ED, gate_up_EGD, down_EDF])
    floats = [y_TD, routed.weights_TK, routed.logsumexp_T, routed.probability_sum_E, *gradients]
    return floats, [routed.expert_ids_TK, routed.load_E, *routed.dispatch]


@pytest.mark.parametrize("from_logits", [False, True], ids=["gate", "logits"])
@pytest.mark.parametrize(
    ("rule", "masked", "biased", "recompute"),
    [
        (RouteRule(K), False, False, False),
        (RouteRule(K, norm_topk_prob=True, probability_sum=True), True, False, True),
        (RouteRule(K, sigmoid=True, norm_topk_prob=True, routed_scaling_factor=2.5), False, True, False),
        (RouteRule(K, sigmoid=True, probability_sum=True), True, True, False),
        (RouteRule(K, uniform=True), False, False, False),
    ],
    ids=["softmax", "balance", "sigmoid", "sigmoid balance", "uniform"],
)
def test_a_layer_is_the_same_with_kernels(
    poisoned_memory: None,
    with_kernels: Callable[..., Any],
    rule: RouteRule,
    masked: bool,
    biased: bool,
    recompute: bool,
    from_logits: bool,
) -> None:
    inputs = [torch.randn(shape) for shape in [(T, D), (E, D), (E, 2 * F, D), (E, D, F), (T, D)]]
    arguments = (rule, from_logits, masked, biased, recompute, inputs)
    (plain, plain_integers), (ours, our_integers) = layer(*arguments), with_kernels(layer, *arguments)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    assert [tensor.tolist() for tensor in our_integers] == [tensor.tolist() for tensor in plain_integers]


def test_strided_ids_are_sorted_the_same_with_kernels(with_kernels: Callable[..., Any]) -> None:
    column_TK = torch.randint(0, E, (T, 3))[:, :1]
    assert not column_TK.is_contiguous()
    plain, ours = sort_by_expert(column_TK, E), with_kernels(sort_by_expert, column_TK, E)
    assert all(torch.equal(left, right) for left, right in zip(ours, plain, strict=True))


@pytest.mark.parametrize("width", [8, 10])
def test_opcheck_with_kernels(with_kernels: Callable[..., Any], width: int) -> None:
    x_TD, gate_ED = torch.randn(T, D, requires_grad=True), torch.randn(E, D, requires_grad=True)
    rule = RouteRule(K, probability_sum=True)
    with_kernels(torch.library.opcheck, torch.ops.pathmoe.route.default, (x_TD, gate_ED, None, None, *rule))
    routed = route(x_TD.detach(), gate_ED.detach(), rule)
    weights = [torch.randn(shape, requires_grad=True) for shape in [(E, 2 * width, D), (E, D, width)]]
    arguments = (x_TD, routed.weights_TK, *weights, *routed.dispatch, False)
    with_kernels(torch.library.opcheck, torch.ops.pathmoe.expert_mlp.default, arguments)
    with_kernels(torch.library.opcheck, torch.ops.pathmoe.sort_by_expert.default, (routed.expert_ids_TK, E))


def test_compiles_without_a_graph_break_with_kernels(with_kernels: Callable[..., Any]) -> None:
    torch.compiler.reset()
    inputs = [torch.randn(shape) for shape in [(T, D), (E, D), (E, 2 * F, D), (E, D, F)]]

    def function(x_TD: Tensor, gate_ED: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
        routed = route(x_TD, gate_ED, RouteRule(K))
        return expert_mlp(x_TD, routed.weights_TK, gate_up_EGD, down_EDF, routed.dispatch)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_kernels(compiled, *inputs), function(*inputs), atol=1e-4, rtol=1e-4)
    torch.compiler.reset()


@pytest.fixture
def on_gpu() -> Iterator[Callable[[torch.dtype], Tensor]]:
    """Makes tensors that say they lie on a GPU."""
    device._has_kernels.cache_clear()
    with FakeTensorMode():
        yield lambda dtype: torch.empty(1, device="cuda", dtype=dtype)
    device._has_kernels.cache_clear()


def test_only_what_cuda_computes_in_single_precision_or_less_runs_triton(on_gpu: Callable[..., Tensor]) -> None:
    assert not device.runs_triton(torch.zeros(1))
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.int64]
    assert all(device.runs_triton(on_gpu(dtype)) for dtype in dtypes)
    assert not device.runs_triton(on_gpu(torch.float64))


@pytest.mark.parametrize(
    ("name", "value", "runs"),
    [
        ("find_spec", lambda name: None, False),
        ("torch.version.hip", "7.0", False),
        ("torch.cuda.get_device_capability", lambda device: (7, 5), False),
        ("torch.cuda.get_device_capability", lambda device: (8, 0), True),
        ("torch.cuda.get_device_capability", lambda device: (10, 0), True),
    ],
    ids=["no triton", "rocm", "sm_75", "sm_80", "sm_100"],
)
def test_which_gpus_run_triton(
    monkeypatch: pytest.MonkeyPatch, on_gpu: Callable[..., Tensor], name: str, value: Any, runs: bool
) -> None:
    if "cuda" in name:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(f"pathmoe_kernels.device.{name}", value)
    assert device.runs_triton(on_gpu(torch.float32)) == runs
