"""The ops with their kernels, in Triton's interpreter, against the same ops as a CPU runs them."""

# Shapes: T tokens, E experts, K experts per token, D hidden, F expert width, G = 2F, N = T*K routed rows,
# I and O the inner and outer width of a linear layer.

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pathmoe_kernels import (
    Dispatch,
    RouteRule,
    combine_rows,
    device,
    dispatch_rows,
    expert_mlp,
    grouped_linear,
    route,
    route_logits,
    sort_by_expert,
)

T, E, K, D, F = 21, 6, 3, 12, 10

# `expert_mlp` is also the name of a function of the package, and hides the module.
OPS = [sys.modules[f"pathmoe_kernels.{name}"] for name in ("route", "sort", "expert_mlp", "row_ops", "grouped_linear")]


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


class NumbersReturned(TorchDispatchMode):
    """Of each output of each op of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if func.namespace == "pathmoe":
            self.of[func.__name__.removesuffix(".default")] = [output.numel() for output in outputs]
        return outputs


def layer_gradients(inputs: list[Tensor], frozen: set[int]) -> tuple[list[Tensor | None], dict[str, list[int]]]:
    """Gradients of x, gate, gate_up and down after backward, and the numbers that the ops returned."""
    x_TD, gate_ED, gate_up_EGD, down_EDF = (
        tensor.clone().requires_grad_(i not in frozen) for i, tensor in enumerate(inputs)
    )
    with NumbersReturned() as numbers:
        routed = route(x_TD, gate_ED, RouteRule(K))
        y_TD = expert_mlp(x_TD, routed.weights_TK, gate_up_EGD, down_EDF, routed.dispatch)
        (y_TD.square().sum() + routed.logsumexp_T.sum()).backward()
    return [leaf.grad for leaf in (x_TD, gate_ED, gate_up_EGD, down_EDF)], numbers.of


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("frozen", [{1}, {2, 3}, {1, 2, 3}, {3}], ids=str)
def test_frozen_weights_cost_nothing_and_change_nothing(
    poisoned_memory: None, with_kernels: Callable[..., Any], frozen: set[int], kernels: bool
) -> None:
    inputs = [torch.randn(shape) for shape in [(T, D), (E, D), (E, 2 * F, D), (E, D, F)]]
    run = with_kernels if kernels else lambda function, *arguments: function(*arguments)
    (all_gradients, _), (gradients, numbers) = run(layer_gradients, inputs, set()), run(layer_gradients, inputs, frozen)
    for i, (got, want) in enumerate(zip(gradients, all_gradients, strict=True)):
        assert got is None if i in frozen else torch.equal(got, want), i
    assert numbers["route_backward"] == [T * D, 0 if 1 in frozen else E * D]
    experts = [0, 0] if {2, 3} <= frozen else [2 * E * F * D, E * D * F]
    assert numbers["expert_mlp_backward"] == [T * D, T * K, *experts]


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


def other_experts(
    x_TD: Tensor, weights_TK: Tensor, parameters: list[Tensor], dispatch: Dispatch, transposed: bool
) -> Tensor:
    """Two linear layers of each expert, each followed by a gain, whose gradient is a sum over all rows."""
    up_EFD, up_bias_EF, down_EDF, down_bias_ED, gain_F, gain_D = parameters
    x_ND = dispatch_rows(x_TD, dispatch, weights_TK.shape[1])
    h_NF = grouped_linear(x_ND, up_EFD, dispatch.ends_E, up_bias_EF, transposed=transposed)
    a_NF = (h_NF * gain_F).tanh()
    y_ND = grouped_linear(a_NF, down_EDF, dispatch.ends_E, down_bias_ED, transposed=transposed)
    return combine_rows(y_ND * gain_D, weights_TK, dispatch)


@pytest.fixture
def poisoned_gemms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped GEMMs leave the rows of no expert as the memory was, which is C++'s, and here NaN."""
    module = sys.modules["pathmoe_kernels.grouped_linear"]
    rows_by_weights = module.rows_by_weights

    def poisoned(rows_NI: Tensor, weights_EIO: Tensor, ends_E: Tensor) -> Tensor:
        product_NO = rows_by_weights(rows_NI, weights_EIO, ends_E)
        product_NO[int(ends_E[-1]) :] = math.nan
        return product_NO

    monkeypatch.setattr(module, "rows_by_weights", poisoned)


def with_gradients(inputs: list[Tensor], dispatch: Dispatch, transposed: bool, upstream_TD: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    y_TD = other_experts(leaves[0], leaves[1], leaves[2:], dispatch, transposed)
    return [y_TD.detach(), *torch.autograd.grad(y_TD, leaves, upstream_TD)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("hidden_size", "width"), [(16, 8), (12, 10), (5, 16), (7, 3)])
@pytest.mark.parametrize("share_of_none", [0.0, 0.4, 1.0])
def test_other_experts_are_the_same_with_kernels(
    poisoned_memory: None,
    poisoned_gemms: None,
    with_kernels: Callable[..., Any],
    share_of_none: float,
    hidden_size: int,
    width: int,
    transposed: bool,
    dtype: torch.dtype,
) -> None:
    ids_TK = torch.rand(T, E).argsort(dim=-1)[:, :K]
    dispatch = sort_by_expert(ids_TK.masked_fill((ids_TK == 2) | (torch.rand(T, K) < share_of_none), E), E)
    up, down = (E, width, hidden_size), (E, hidden_size, width)
    shapes = [(T, hidden_size), (T, K), down if transposed else up, (E, width), up if transposed else down]
    shapes += [(E, hidden_size), (width,), (hidden_size,)]
    # All positive, so that no sum cancels, and small enough that tanh is not flat: both would magnify rounding.
    inputs = [(torch.rand(shape) / (4 if len(shape) == 3 else 1)).to(dtype) for shape in shapes]
    upstream_TD = torch.rand(T, hidden_size).to(dtype)
    exact = with_gradients([tensor.double() for tensor in inputs], dispatch, transposed, upstream_TD.double())
    ours = with_kernels(with_gradients, inputs, dispatch, transposed, upstream_TD)
    for got, want in zip(ours, exact, strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).norm() <= 4 * torch.finfo(dtype).eps * want.norm()


@pytest.mark.parametrize("width", [8, 10])
@pytest.mark.parametrize("transposed", [False, True])
def test_opcheck_of_row_ops_with_kernels(with_kernels: Callable[..., Any], transposed: bool, width: int) -> None:
    ops, opcheck = torch.ops.pathmoe, torch.library.opcheck
    dispatch = sort_by_expert(torch.randint(0, E + 1, (T, K)), E)
    x_TD, x_ND = torch.randn(T, D, requires_grad=True), torch.randn(T * K, D, requires_grad=True)
    weights_TK = torch.randn(T, K, requires_grad=True)
    with_kernels(opcheck, ops.dispatch_rows.default, (x_TD, *dispatch, K))
    with_kernels(opcheck, ops.combine_rows.default, (x_ND, weights_TK, *dispatch, K))
    detached = [tensor.detach() for tensor in (x_TD, x_ND, weights_TK)]
    with_kernels(opcheck, ops.combine_rows_backward.default, (*detached, *dispatch))
    weight = torch.randn((E, D, width) if transposed else (E, width, D), requires_grad=True)
    arguments = (x_ND, weight, torch.randn(E, width, requires_grad=True), dispatch.ends_E, transposed)
    with_kernels(opcheck, ops.grouped_linear.default, arguments)
    with_kernels(opcheck, ops.grouped_outer.default, (x_ND.detach(), torch.randn(T * K, width), dispatch.ends_E))
    with_kernels(opcheck, ops.grouped_sum.default, (torch.randn(T * K, width), dispatch.ends_E))


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
