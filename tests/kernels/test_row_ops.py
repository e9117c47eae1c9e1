"""Rows to the experts and back against lists of rows in plain Python, output and every gradient."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden.

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pathmoe_kernels import Dispatch, combine_rows, dispatch_rows, sort_by_expert, sum_rows

pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Shape(NamedTuple):
    T: int
    K: int
    E: int
    D: int


SHAPES = {
    "plain": Shape(T=16, K=2, E=4, D=8),
    "odd": Shape(T=13, K=3, E=7, D=5),
    "one choice": Shape(T=9, K=1, E=4, D=8),
    "more experts than rows": Shape(T=3, K=2, E=31, D=4),
    "width one": Shape(T=7, K=2, E=3, D=1),
    "no token": Shape(T=0, K=2, E=3, D=4),
}
SHARES_OF_NONE = [0.0, 0.3, 1.0]


def routed(shape: Shape, share_of_none: float) -> tuple[Dispatch, list[tuple[int, int]]]:
    """The dispatch of random ids, and token and choice of each row that has an expert, in sorted order."""
    ids_TK = torch.rand(shape.T, shape.E).argsort(dim=-1)[:, : shape.K]
    none_TK = torch.rand(ids_TK.shape) < share_of_none
    ids_TK = ids_TK.where(~none_TK, torch.where(torch.rand(ids_TK.shape) < 0.5, -1, shape.E))
    rows = [(t, k) for e in range(shape.E) for t in range(shape.T) for k in range(shape.K) if int(ids_TK[t, k]) == e]
    return sort_by_expert(ids_TK, shape.E), rows


def plain_dispatch(x_TD: Tensor, rows: list[tuple[int, int]], num_rows: int) -> Tensor:
    zeros_ND = x_TD.new_zeros(num_rows - len(rows), x_TD.shape[1])
    return torch.cat([*(x_TD[t : t + 1] for t, _ in rows), zeros_ND, x_TD[:0]])


def plain_combine(y_ND: Tensor, weights_TK: Tensor, rows: list[tuple[int, int]]) -> Tensor:
    sums_TD = list(y_ND.new_zeros(len(weights_TK), y_ND.shape[1]).split(1))
    for position, (t, k) in enumerate(rows):
        sums_TD[t] = sums_TD[t] + weights_TK[t, k] * y_ND[position]
    return torch.cat([*sums_TD, y_ND[:0]])


def output_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    gradients = torch.autograd.grad(output, leaves, upstream.to(output.dtype), materialize_grads=True)
    return [output.detach(), *gradients]


def assert_exact(ours: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    for got, want in zip(ours, exact, strict=True):
        assert got.shape == want.shape
        if dtype == torch.bfloat16:
            assert (got.double() - want).norm() <= 4 * torch.finfo(dtype).eps * want.norm()
        else:
            tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
            torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share_of_none", SHARES_OF_NONE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dispatched_rows_are_their_tokens_and_zeros_for_no_expert(
    shape: Shape, share_of_none: float, dtype: torch.dtype
) -> None:
    dispatch, rows = routed(shape, share_of_none)
    x_TD = torch.randn(shape.T, shape.D).to(dtype)
    upstream_ND = torch.randn(shape.T * shape.K, shape.D).to(dtype)
    exact = output_and_gradients(
        lambda x_TD: plain_dispatch(x_TD, rows, len(upstream_ND)), [x_TD.double()], upstream_ND
    )
    # Whatever gradients the rows of no expert bring.
    upstream_ND[len(rows) :] = math.nan
    ours = output_and_gradients(lambda x_TD: dispatch_rows(x_TD, dispatch, shape.K), [x_TD], upstream_ND)
    assert_exact(ours, exact, dtype)
    assert torch.equal(ours[0].double(), exact[0])
    assert ours[0].dtype == ours[1].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share_of_none", SHARES_OF_NONE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_combined_rows_are_weighted_sums_whatever_the_rows_of_no_expert_hold(
    shape: Shape, share_of_none: float, dtype: torch.dtype
) -> None:
    dispatch, rows = routed(shape, share_of_none)
    y_ND = torch.randn(shape.T * shape.K, shape.D).to(dtype)
    weights_TK = torch.randn(shape.T, shape.K, dtype=torch.promote_types(dtype, torch.float32))
    upstream_TD = torch.randn(shape.T, shape.D).to(dtype)
    exact_inputs = [y_ND.double(), weights_TK.double()]
    exact = output_and_gradients(lambda *inputs: plain_combine(*inputs, rows), exact_inputs, upstream_TD)
    y_ND[len(rows) :] = math.nan
    weights_N = weights_TK.view(-1)
    weights_N[dispatch.order_N[len(rows) :]] = math.inf
    ours = output_and_gradients(lambda *inputs: combine_rows(*inputs, dispatch), [y_ND, weights_TK], upstream_TD)
    assert_exact(ours, exact, dtype)
    assert [tensor.dtype for tensor in ours] == [dtype, dtype, weights_TK.dtype]
    assert not ours[1][len(rows) :].any()
    assert not ours[2].view(-1)[dispatch.order_N[len(rows) :]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share_of_none", SHARES_OF_NONE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_summed_rows_are_combined_ones_of_weight_one_that_save_no_rows(
    shape: Shape, share_of_none: float, dtype: torch.dtype
) -> None:
    dispatch, rows = routed(shape, share_of_none)
    y_ND, upstream_TD = torch.randn(shape.T * shape.K, shape.D).to(dtype), torch.randn(shape.T, shape.D).to(dtype)
    ones_TK = torch.ones(shape.T, shape.K, dtype=torch.float64)
    exact = output_and_gradients(lambda y_ND: plain_combine(y_ND, ones_TK, rows), [y_ND.double()], upstream_TD)
    y_ND[len(rows) :] = math.nan
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        ours = output_and_gradients(lambda y_ND: sum_rows(y_ND, dispatch, shape.K), [y_ND], upstream_TD)
    assert_exact(ours, exact, dtype)
    assert [tensor.dtype for tensor in ours] == [dtype, dtype]
    assert not any(tensor.is_floating_point() for tensor in saved)


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("share_of_none", SHARES_OF_NONE)
def test_gradcheck(share_of_none: float) -> None:
    shape = SHAPES["odd"]
    dispatch, _ = routed(shape, share_of_none)
    rows, weights_TK = shape.T * shape.K, double(shape.T, shape.K)
    assert torch.autograd.gradcheck(lambda x_TD: dispatch_rows(x_TD, dispatch, shape.K), double(shape.T, shape.D))
    assert torch.autograd.gradcheck(
        lambda y_ND, weights_TK: combine_rows(y_ND, weights_TK, dispatch), (double(rows, shape.D), weights_TK)
    )
    # Without weights, as the gradient of `dispatch_rows` runs it.
    unweighted = torch.ops.pathmoe.combine_rows.default
    assert torch.autograd.gradcheck(lambda y_ND: unweighted(y_ND, None, *dispatch, shape.K), double(rows, shape.D))


@pytest.mark.parametrize("share_of_none", SHARES_OF_NONE)
@pytest.mark.parametrize("shape", [SHAPES["odd"], SHAPES["more experts than rows"]], ids=["odd", "empty experts"])
def test_opcheck(shape: Shape, share_of_none: float) -> None:
    dispatch, _ = routed(shape, share_of_none)
    ops, rows = torch.ops.pathmoe, shape.T * shape.K
    x_TD, y_ND = torch.randn(shape.T, shape.D, requires_grad=True), torch.randn(rows, shape.D, requires_grad=True)
    weights_TK = torch.randn(shape.T, shape.K, requires_grad=True)
    torch.library.opcheck(ops.dispatch_rows.default, (x_TD, *dispatch, shape.K))
    torch.library.opcheck(ops.combine_rows.default, (y_ND, weights_TK, *dispatch, shape.K))
    torch.library.opcheck(ops.combine_rows.default, (y_ND, None, *dispatch, shape.K))
    detached = [tensor.detach() for tensor in (x_TD, y_ND, weights_TK)]
    torch.library.opcheck(ops.combine_rows_backward.default, (*detached, *dispatch))


def there_and_back(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    dispatch = sort_by_expert(ids_TK, 5)
    return combine_rows(dispatch_rows(x_TD, dispatch, ids_TK.shape[1]).square(), weights_TK, dispatch)


def test_strided_inputs_and_an_expanded_gradient() -> None:
    x_TD, weights_TK = torch.randn(8, 12).mT[:, ::2], torch.randn(3, 12).mT
    ids_TK = torch.randint(0, 6, (12, 3))
    assert not x_TD.is_contiguous()
    assert not weights_TK.is_contiguous()
    results = []
    for inputs in ([x_TD, weights_TK], [x_TD.contiguous(), weights_TK.contiguous()]):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output_TD = there_and_back(leaves[0], ids_TK, leaves[1])
        results.append([output_TD, *torch.autograd.grad(output_TD.sum(), leaves)])
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],  # inductor calls a C++ compiler
)
def test_compiles_without_a_graph_break(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(there_and_back, fullgraph=True, backend=backend)
    for num_tokens in (16, 24):  # the second size makes the graph dynamic
        ids_TK, upstream_TD = torch.randint(0, 6, (num_tokens, 2)), torch.randn(num_tokens, 8)
        inputs = [torch.randn(num_tokens, 8), torch.randn(num_tokens, 2)]

        def run(function: Callable[..., Tensor], ids_TK: Tensor = ids_TK) -> Callable[..., Tensor]:
            return lambda x_TD, weights_TK: function(x_TD, ids_TK, weights_TK)

        plain = output_and_gradients(run(there_and_back), inputs, upstream_TD)
        torch.testing.assert_close(output_and_gradients(run(compiled), inputs, upstream_TD), plain)


def test_autocast_gathers_in_its_dtype_and_sums_in_fp32() -> None:
    shape = SHAPES["plain"]
    dispatch, _ = routed(shape, 0.3)
    x_TD, weights_TK = torch.randn(shape.T, shape.D, requires_grad=True), torch.rand(shape.T, shape.K)
    with torch.autocast("cpu", torch.bfloat16):
        rows_ND = dispatch_rows(x_TD, dispatch, shape.K)
        y_TD = combine_rows(rows_ND, weights_TK, dispatch)
    half_TD = x_TD.detach().bfloat16()
    assert torch.equal(rows_ND, dispatch_rows(half_TD, dispatch, shape.K))
    exact_TD = combine_rows(dispatch_rows(half_TD, dispatch, shape.K).double(), weights_TK, dispatch)
    assert torch.equal(y_TD, exact_TD.to(torch.bfloat16))
    (grad_TD,) = torch.autograd.grad(y_TD.sum(), x_TD)
    assert grad_TD.dtype == torch.float32


def test_the_gradient_of_a_weight_does_not_overflow_on_its_way() -> None:
    y_ND = torch.tensor([[300.0, 300.0]], dtype=torch.float16)
    weights_TK = torch.ones(1, 1, requires_grad=True)
    output_TD = combine_rows(y_ND, weights_TK, sort_by_expert(torch.zeros(1, 1, dtype=torch.int32), 1))
    grad_TD = torch.tensor([[300.0, -299.0]], dtype=torch.float16)
    assert torch.autograd.grad(output_TD, weights_TK, grad_TD)[0].item() == 300.0
