"""Each expert's linear layer against a loop over rows in fp64, output and every gradient."""

# Shapes: N routed rows, E experts, I and O the inner and outer width of the layers.

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pathmoe_kernels import grouped_linear

pytestmark = pytest.mark.usefixtures("poisoned_memory")

N, E = 12, 4
ENDS = {
    "all experts": [3, 4, 9, 12],
    "empty experts": [0, 5, 5, 12],
    "one expert": [0, 0, 12, 12],
    "rows of no expert": [2, 3, 3, 7],
    "only rows of no expert": [0, 0, 0, 0],
}
WIDTHS = [(8, 16), (5, 3), (8, 3), (5, 4), (1, 1)]
FORMS = [(biased, transposed) for biased in (False, True) for transposed in (False, True)]
IDS = [
    f"{'bias' if biased else 'no bias'}, {'[E, I, O]' if transposed else '[E, O, I]'}" for biased, transposed in FORMS
]


def ends_of(ends: list[int]) -> Tensor:
    return torch.tensor(ends, dtype=torch.int32)


def inputs_of(inner: int, outer: int, biased: bool, transposed: bool, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(N, inner), (E, inner, outer) if transposed else (E, outer, inner), *[(E, outer)] * biased]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def by_op(ends: list[int], transposed: bool) -> Callable[..., Tensor]:
    def run(rows_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None = None) -> Tensor:
        return grouped_linear(rows_NI, weight_EOI, ends_of(ends), bias_EO, transposed=transposed)

    return run


def row_by_row(ends: list[int], transposed: bool) -> Callable[..., Tensor]:
    def run(rows_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None = None) -> Tensor:
        equation = "i,io->o" if transposed else "i,oi->o"
        outer = weight_EOI.shape[2 if transposed else 1]
        # The zero keeps the graph where no expert has rows.
        zero = 0 * (rows_NI.sum() + weight_EOI.sum() + (0 if bias_EO is None else bias_EO.sum()))
        product = [zero * torch.ones(outer, dtype=rows_NI.dtype) for _ in range(len(rows_NI))]
        for e, (start, end) in enumerate(pairwise([0, *ends])):
            for position in range(start, end):
                product[position] = torch.einsum(equation, rows_NI[position], weight_EOI[e])
                if bias_EO is not None:
                    product[position] = product[position] + bias_EO[e]
        return torch.stack(product)

    return run


def output_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor], upstream_NO: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output_NO = function(*leaves)
    gradients = torch.autograd.grad(output_NO, leaves, upstream_NO.to(output_NO.dtype), materialize_grads=True)
    return [output_NO.detach(), *gradients]


@pytest.mark.parametrize(("biased", "transposed"), FORMS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("inner", "outer"), WIDTHS)
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_each_row_goes_through_its_expert_and_rows_of_no_expert_are_not_read(
    ends: list[int], inner: int, outer: int, dtype: torch.dtype, biased: bool, transposed: bool
) -> None:
    inputs = inputs_of(inner, outer, biased, transposed, dtype)
    upstream_NO = torch.randn(N, outer).to(dtype)
    exact_inputs = [tensor.double() for tensor in inputs]
    exact = output_and_gradients(row_by_row(ends, transposed), exact_inputs, upstream_NO.double())
    inputs[0][ends[-1] :] = math.nan
    upstream_NO[ends[-1] :] = math.nan
    ours = output_and_gradients(by_op(ends, transposed), inputs, upstream_NO)
    for got, want in zip(ours, exact, strict=True):
        assert (got.shape, got.dtype) == (want.shape, dtype)
        if dtype == torch.bfloat16:
            assert (got.double() - want).norm() <= 4 * torch.finfo(dtype).eps * want.norm()
        else:
            tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
            torch.testing.assert_close(got.double(), want, atol=tolerance, rtol=tolerance)
    assert not ours[0][ends[-1] :].any()
    assert not ours[1][ends[-1] :].any()


@pytest.mark.parametrize(("biased", "transposed"), FORMS, ids=IDS)
@pytest.mark.parametrize("ends", [ENDS["empty experts"], ENDS["rows of no expert"]], ids=["empty", "none"])
def test_gradcheck(ends: list[int], biased: bool, transposed: bool) -> None:
    inputs = [tensor.requires_grad_() for tensor in inputs_of(5, 3, biased, transposed, torch.float64)]
    assert torch.autograd.gradcheck(by_op(ends, transposed), inputs)


@pytest.mark.parametrize(("biased", "transposed"), FORMS, ids=IDS)
@pytest.mark.parametrize("ends", [ENDS["empty experts"], ENDS["rows of no expert"]], ids=["empty", "none"])
def test_opcheck(ends: list[int], biased: bool, transposed: bool) -> None:
    rows_NI, weight_EOI, *bias = (t.requires_grad_() for t in inputs_of(5, 3, biased, transposed, torch.float32))
    arguments = (rows_NI, weight_EOI, bias[0] if bias else None, ends_of(ends), transposed)
    torch.library.opcheck(torch.ops.pathmoe.grouped_linear.default, arguments)


@pytest.mark.parametrize("ends", [ENDS["empty experts"], ENDS["rows of no expert"]], ids=["empty", "none"])
def test_opcheck_of_the_gradients(ends: list[int]) -> None:
    left_NO, right_NI = torch.randn(N, 3), torch.randn(N, 5)
    torch.library.opcheck(torch.ops.pathmoe.grouped_outer.default, (left_NO, right_NI, ends_of(ends)))
    torch.library.opcheck(torch.ops.pathmoe.grouped_sum.default, (left_NO, ends_of(ends)))


def test_strided_inputs_and_an_expanded_gradient() -> None:
    inputs = inputs_of(6, 5, True, False, torch.float32)
    strided = [tensor.mT.contiguous().mT for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in strided)
    upstream_NO = torch.randn(N, 1).expand(N, 5)
    plain = output_and_gradients(by_op(ENDS["all experts"], False), inputs, upstream_NO.contiguous())
    torch.testing.assert_close(output_and_gradients(by_op(ENDS["all experts"], False), strided, upstream_NO), plain)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],  # inductor calls a C++ compiler
)
def test_compiles_without_a_graph_break(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(grouped_linear, fullgraph=True, backend=backend)
    for num_rows in (N, N + 3):  # the second size makes the graph dynamic
        _, *parameters = inputs_of(5, 3, True, True, torch.float32)
        inputs, upstream_NO = [torch.randn(num_rows, 5), *parameters], torch.randn(num_rows, 3)

        def run(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda rows, weight, bias: function(rows, weight, ends_of([2, 3, 3, 9]), bias, transposed=True)

        plain = output_and_gradients(run(grouped_linear), inputs, upstream_NO)
        torch.testing.assert_close(output_and_gradients(run(compiled), inputs, upstream_NO), plain)


def test_autocast_runs_in_its_dtype() -> None:
    inputs, upstream_NO = inputs_of(8, 4, True, False, torch.float32), torch.randn(N, 4)
    function = by_op(ENDS["rows of no expert"], False)
    half = output_and_gradients(function, [tensor.bfloat16() for tensor in inputs], upstream_NO)
    with torch.autocast("cpu", torch.bfloat16):
        ours = output_and_gradients(function, inputs, upstream_NO)
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, *[torch.float32] * 3]
    assert all(torch.equal(got, want.to(got.dtype)) for got, want in zip(ours, half, strict=True))


@pytest.mark.parametrize("trained", range(3), ids=["rows", "weight", "bias"])
def test_only_gradients_that_are_asked_for_are_computed(trained: int) -> None:
    inputs = inputs_of(8, 4, True, False, torch.float32)
    inputs[trained].requires_grad_()
    output_NO = by_op(ENDS["all experts"], False)(*inputs)
    called = []

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args, **(kwargs or {}))

    with Called():
        output_NO.sum().backward()
    ops = torch.ops.pathmoe
    backward_ops = [ops.grouped_linear.default, ops.grouped_outer.default, ops.grouped_sum.default]
    assert [op for op in backward_ops if op in called] == [backward_ops[trained]]
