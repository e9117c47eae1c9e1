"""Routing, sorting and plain SwiGLU experts on a GPU, against plain PyTorch in fp64 on the CPU.

`TRITON_INTERPRET=0 pytest tests/kernels/test_on_gpu.py` runs it, as `make bench-kernels` does before it times anything.
"""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F.

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pathmoe.bench.kernels import no_gpu
from pathmoe_kernels import Routed, RouteRule, expert_mlp, route, route_logits, sort_by_expert

CPU, GPU = torch.device("cpu"), torch.device("cuda")

why_not = (
    "needs TRITON_INTERPRET=0, so that kernels run on a GPU" if os.environ["TRITON_INTERPRET"] != "0" else no_gpu()
)
if why_not:
    pytest.skip(why_not, allow_module_level=True)

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # What torch, its compiler and Triton warn of depends on the GPU.
    pytest.mark.filterwarnings("default"),
]

FP32 = {"atol": 1e-4, "rtol": 1e-4}


def assert_near(got: Tensor, want: Tensor, tolerance: float, name: str) -> None:
    """The norm of the difference is at most `tolerance` of the norm."""
    assert got.shape == want.shape, name
    error, size = float((got.double().cpu() - want).norm()), float(want.norm())
    # A NaN is below nothing.
    assert error <= tolerance * size, f"{name}: {error:.3g} of {size:.3g}"


def tolerance_of(dtype: torch.dtype) -> float:
    return 2e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps


def integers(routed: Routed) -> list[list[int]]:
    return [tensor.tolist() for tensor in (routed.expert_ids_TK, routed.load_E, *routed.dispatch)]


def same_bits(left: Routed, right: Routed) -> bool:
    pairs = zip((*left[:-1], *left.dispatch), (*right[:-1], *right.dispatch), strict=True)
    # As integers, NaN equals itself.
    return all(torch.equal(one.view(torch.int32), two.view(torch.int32)) for one, two in pairs)


def assert_best(ids_TK: Tensor, best: Routed, exact_TE: Tensor, rule: RouteRule, bias_E: Tensor | None) -> None:
    """The choice is the best, in its order, as far as ranks that differ by rounding may stand for each other."""
    if rule.uniform:
        assert ids_TK.tolist() == best.expert_ids_TK.tolist()
        return
    assert (ids_TK.sort(dim=-1).values.diff(dim=-1) > 0).all(), "an expert is chosen twice"
    scores_TE = exact_TE.sigmoid() if rule.sigmoid else exact_TE.softmax(dim=-1)
    ranking_TE = exact_TE if bias_E is None else scores_TE + bias_E
    torch.testing.assert_close(ranking_TE.gather(-1, ids_TK), ranking_TE.gather(-1, best.expert_ids_TK), **FP32)


def test_routing_and_its_gradients_equal_the_formula(plain_route: Callable[..., Routed], route_case: Any) -> None:
    rule, has_gate = route_case.rule, "logits" not in route_case.options
    num_tokens, num_experts = route_case.num_tokens(128), route_case.E
    bias_E = torch.randn(num_experts) if "bias" in route_case.options else None
    mask_T = torch.rand(num_tokens) < 0.6 if "mask" in route_case.options else None
    shapes = [(num_tokens, route_case.D), (num_experts, route_case.D)] if has_gate else [(num_tokens, num_experts)]
    inputs = [torch.randn(shape).to(route_case.dtype) for shape in shapes]
    leaves = [tensor.to(GPU).requires_grad_() for tensor in inputs]
    options = {
        "selection_bias_E": None if bias_E is None else bias_E.to(GPU),
        "token_mask_T": None if mask_T is None else mask_T.to(GPU),
    }
    ours = route(*leaves, rule, **options) if has_gate else route_logits(*leaves, rule, **options)

    exact_leaves = [tensor.double().requires_grad_() for tensor in inputs]
    exact_inputs = exact_leaves if has_gate else [*exact_leaves, None]
    exact_TE = inputs[0].double() @ inputs[1].double().T if has_gate else inputs[0].double()
    ids_TK = ours.expert_ids_TK.cpu().long()
    assert_best(ids_TK, plain_route(*exact_inputs, rule, bias_E, mask_T), exact_TE, rule, bias_E)
    exact = plain_route(*exact_inputs, rule, bias_E, mask_T, ids_TK)
    assert integers(ours) == integers(exact)

    floats = ("weights_TK", "logsumexp_T", "probability_sum_E")
    upstream = [torch.randn(getattr(exact, name).shape) for name in floats]
    losses = []
    for routed in (ours, exact):
        outputs = [getattr(routed, name) for name in floats]
        losses.append(sum((o * u.to(o)).sum() for o, u in zip(outputs, upstream, strict=True) if o.requires_grad))
    for name in floats:
        torch.testing.assert_close(getattr(ours, name).cpu().double(), getattr(exact, name), **FP32)
    gradients = torch.autograd.grad(losses[0], leaves)
    exact_gradients = torch.autograd.grad(losses[1], exact_leaves)
    for name, got, want in zip(("x", "gate"), gradients, exact_gradients, strict=False):
        assert got.dtype == route_case.dtype
        assert_near(got, want, max(1e-4, tolerance_of(route_case.dtype)), name)


@pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize(("num_experts", "num_choices"), [(3, 2), (60, 8), (256, 8)])
def test_the_lower_index_wins_a_tie_and_nan_rows_take_the_first_experts(
    num_experts: int, num_choices: int, sigmoid: bool
) -> None:
    logits_TE = torch.randint(-1, 2, (300, num_experts)).float()
    logits_TE[7, 1] = math.nan
    rule = RouteRule(num_choices, sigmoid, norm_topk_prob=True)
    ours, plain = route_logits(logits_TE.to(GPU), rule), route_logits(logits_TE, rule)
    assert integers(ours) == integers(plain)
    assert ours.expert_ids_TK[7].tolist() == list(range(num_choices))
    torch.testing.assert_close(ours.weights_TK.cpu(), plain.weights_TK, equal_nan=True, **FP32)


def many_tokens(num_experts: int) -> tuple[Tensor, Tensor, RouteRule]:
    """More chunks than programs, so that programs finish in any order."""
    x_TD = torch.randn(40_001, 64, device=GPU, dtype=torch.bfloat16)
    gate_ED = torch.randn(num_experts, 64, device=GPU, dtype=torch.bfloat16)
    return x_TD, gate_ED, RouteRule(8, norm_topk_prob=True, probability_sum=True)


@pytest.mark.parametrize("num_experts", [16, 64, 128, 256])
def test_many_programs_sort_all_rows_and_to_the_same_bits_each_time(num_experts: int) -> None:
    x_TD, gate_ED, rule = many_tokens(num_experts)
    first = route(x_TD, gate_ED, rule)
    ids_N = first.expert_ids_TK.flatten().long()
    order_N = ids_N.argsort(stable=True)
    load_E = ids_N.bincount(minlength=num_experts)
    wanted = (load_E, order_N, order_N.argsort(), load_E.cumsum(0))
    for got, want in zip((first.load_E, *first.dispatch), wanted, strict=True):
        assert torch.equal(got.long(), want)
    assert all(same_bits(route(x_TD, gate_ED, rule), first) for _ in range(20))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("num_experts", [1, 3, 60, 256])
@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (171, 3), (65_537, 8)], ids=str)
def test_bare_ids_are_sorted_as_on_a_cpu(shape: tuple[int, int], num_experts: int, dtype: torch.dtype) -> None:
    ids_TK = torch.randint(-1, num_experts + 1, shape, dtype=dtype)
    on_gpu, on_cpu = sort_by_expert(ids_TK.to(GPU), num_experts), sort_by_expert(ids_TK, num_experts)
    assert all(torch.equal(got.cpu(), want) for got, want in zip(on_gpu, on_cpu, strict=True))


class Shape(NamedTuple):
    T: int
    K: int
    E: int
    D: int
    F: int


SHAPES = {
    "aligned": Shape(T=256, K=8, E=64, D=128, F=64),
    "256 experts": Shape(T=300, K=8, E=256, D=64, F=32),
    "odd widths": Shape(T=129, K=3, E=7, D=65, F=33),
    "one token": Shape(T=1, K=2, E=5, D=8, F=8),
    "every expert chosen": Shape(T=17, K=5, E=5, D=16, F=24),
    "more experts than rows": Shape(T=3, K=2, E=31, D=8, F=8),
    "no token": Shape(T=0, K=2, E=3, D=8, F=8),
}


class Inputs(NamedTuple):
    x_TD: Tensor
    weights_TK: Tensor
    gate_up_EGD: Tensor
    down_EDF: Tensor
    grad_TD: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Inputs":
        """With routing weights in fp32 at least, as `route` gives them."""
        wide = torch.promote_types(dtype, torch.float32)
        return Inputs(*(tensor.to(device, wide if i == 1 else dtype) for i, tensor in enumerate(self)))


def inputs_of(shape: Shape, dtype: torch.dtype) -> Inputs:
    """Numbers that `dtype` holds."""
    tensors = (
        torch.randn(shape.T, shape.D),
        torch.randn(shape.T, shape.K),
        torch.randn(shape.E, 2 * shape.F, shape.D) / shape.D**0.5,
        torch.randn(shape.E, shape.D, shape.F) / shape.F**0.5,
        torch.randn(shape.T, shape.D),
    )
    return Inputs(*tensors).to(CPU, dtype)


def distinct_ids(shape: Shape) -> Tensor:
    return torch.rand(shape.T, shape.E).argsort(dim=-1)[:, : shape.K]


def run_experts(inputs: Inputs, ids_TK: Tensor, recompute: bool = False) -> list[Tensor]:
    """Output, and gradients of x, weights, gate_up and down."""
    dispatch = sort_by_expert(ids_TK.to(inputs.x_TD.device), len(inputs.down_EDF))
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:4]]
    y_TD = expert_mlp(*leaves, dispatch, recompute=recompute)
    return [y_TD.detach(), *torch.autograd.grad(y_TD, leaves, inputs.grad_TD.to(y_TD.dtype))]


def assert_experts(inputs: Inputs, ids_TK: Tensor, dtype: torch.dtype, recompute: bool = False) -> None:
    exact = run_experts(inputs.to(CPU, torch.float64), ids_TK)
    on_gpu = inputs.to(GPU, dtype)
    ours, again = (run_experts(on_gpu, ids_TK, recompute) for _ in range(2))
    for name, got, want in zip(("y", "x", "weights", "gate_up", "down"), ours, exact, strict=True):
        assert_near(got, want, tolerance_of(dtype), name)
    assert all(torch.equal(one, two) for one, two in zip(ours, again, strict=True)), "not the same bits again"


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_experts_and_their_gradients_equal_those_of_a_cpu(shape: Shape, dtype: torch.dtype, recompute: bool) -> None:
    assert_experts(inputs_of(shape, dtype), distinct_ids(shape), dtype, recompute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share_of_none", [0.3, 1.0])
def test_rows_of_no_expert_add_nothing(share_of_none: float, dtype: torch.dtype) -> None:
    shape = SHAPES["aligned"]
    ids_TK = distinct_ids(shape)
    ids_TK[torch.rand(ids_TK.shape) < share_of_none] = shape.E
    assert_experts(inputs_of(shape, dtype), ids_TK, dtype)


@pytest.mark.parametrize("expert", [0, 63])
def test_all_tokens_on_one_expert(expert: int) -> None:
    shape = SHAPES["aligned"]._replace(K=1)
    ids_TK = torch.full((shape.T, 1), expert)
    assert_experts(inputs_of(shape, torch.bfloat16), ids_TK, torch.bfloat16)


def layer(x_TD: Tensor, gate_ED: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor) -> Tensor:
    routed = route(x_TD, gate_ED, RouteRule(8, norm_topk_prob=True))
    return expert_mlp(x_TD, routed.weights_TK, gate_up_EGD, down_EDF, routed.dispatch)


def layer_inputs(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """On the GPU: x, gate, gate_up and down, and a gradient of the output."""
    x_TD, _, gate_up_EGD, down_EDF, grad_TD = inputs_of(SHAPES["aligned"], dtype)
    gate_ED = torch.randn(len(down_EDF), x_TD.shape[1]).to(dtype)
    leaves = [tensor.to(GPU).requires_grad_() for tensor in (x_TD, gate_ED, gate_up_EGD, down_EDF)]
    return leaves, grad_TD.to(GPU)


def output_and_gradients(function: Callable[..., Tensor], leaves: list[Tensor], grad_TD: Tensor) -> list[Tensor]:
    y_TD = function(*leaves)
    return [y_TD.detach(), *torch.autograd.grad(y_TD, leaves, grad_TD.to(y_TD.dtype))]


def test_autocast_runs_the_experts_in_its_dtype_and_gives_gradients_in_that_of_the_weights() -> None:
    leaves, grad_TD = layer_inputs(torch.float32)
    plain = output_and_gradients(layer, leaves, grad_TD)
    with torch.autocast("cuda", torch.bfloat16):
        y_TD = layer(*leaves)
    assert y_TD.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y_TD, leaves, grad_TD.bfloat16())
    for got, want in zip((y_TD.detach(), *gradients), plain, strict=True):
        assert_near(got, want.double().cpu(), tolerance_of(torch.bfloat16), "autocast")
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_nothing_waits_for_the_gpu() -> None:
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("torch's grouped GEMM reads the ends of groups on the host on other GPUs than sm_90 and sm_100")
    leaves, grad_TD = layer_inputs(torch.bfloat16)
    output_and_gradients(layer, leaves, grad_TD)  # compiles, and allocates what stays
    torch.cuda.set_sync_debug_mode("error")
    try:
        output_and_gradients(layer, leaves, grad_TD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
