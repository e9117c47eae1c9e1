"""A linear layer for each expert, over rows sorted by expert, as an op with gradients."""

# Shapes: N routed rows, E experts, I and O the inner and outer width of the layers, B columns of ones.

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pathmoe_kernels.autocast import to_autocast
from pathmoe_kernels.device import device_op, runs_triton
from pathmoe_kernels.grouped import ALIGNMENT, align, rows_by_rows, rows_by_weights
from pathmoe_kernels.row_ops import clear_rows_of_no_expert


def grouped_linear(
    rows_NI: Tensor, weight_EOI: Tensor, ends_E: Tensor, bias_EO: Tensor | None = None, *, transposed: bool = False
) -> Tensor:
    """Each row through the linear layer of its expert: [N, O]; zeros in the rows of no expert.

    Their gradients are zeros too, and what they hold changes nothing. Under autocast in its dtype.

    Args:
        rows_NI: [N, I] floating point, sorted by expert.
        weight_EOI: [E, O, I] of the rows' dtype unless under autocast; [E, I, O] if transposed.
        ends_E: [E] int32, of the `Dispatch` that sorted the rows.
        bias_EO: [E, O], of the weights' dtype.
        transposed: the layout of the weights.
    """
    bias_EO = None if bias_EO is None else to_autocast(bias_EO)
    return _grouped_linear_op(to_autocast(rows_NI), to_autocast(weight_EOI), bias_EO, ends_E, transposed)


def _rows_of_experts(ends_E: Tensor) -> Iterator[slice]:
    """The sorted positions of each expert."""
    return (slice(start, end) for start, end in pairwise([0, *ends_E.tolist()]))


@device_op("pathmoe::grouped_linear")
def _grouped_linear_op(
    rows_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, ends_E: Tensor, transposed: bool
) -> Tensor:
    if runs_triton(rows_NI):
        return _by_grouped_gemm(rows_NI, weight_EOI, bias_EO, ends_E, transposed)
    weight_EIO = weight_EOI if transposed else weight_EOI.mT
    product_NO = rows_NI.new_empty(rows_NI.shape[0], weight_EIO.shape[2])
    for e, (rows, weight_IO) in enumerate(zip(_rows_of_experts(ends_E), weight_EIO.unbind(), strict=True)):
        if rows.start == rows.stop:
            continue
        if bias_EO is None:
            torch.mm(rows_NI[rows], weight_IO, out=product_NO[rows])
        else:
            torch.addmm(bias_EO[e], rows_NI[rows], weight_IO, out=product_NO[rows])
    clear_rows_of_no_expert(product_NO, ends_E)
    return product_NO


def _by_grouped_gemm(
    rows_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, ends_E: Tensor, transposed: bool
) -> Tensor:
    width = weight_EOI.shape[2 if transposed else 1]
    aligned = align(weight_EOI, 2)
    product_NO = rows_by_weights(align(rows_NI, 1), aligned if transposed else aligned.mT, ends_E)[:, :width]
    if bias_EO is not None:
        position_N = torch.arange(rows_NI.shape[0], dtype=torch.int32, device=rows_NI.device)
        expert_N = torch.searchsorted(ends_E, position_N, right=True).clamp_(max=len(ends_E) - 1)
        product_NO += bias_EO.index_select(0, expert_N)
    product_NO = product_NO.contiguous()
    clear_rows_of_no_expert(product_NO, ends_E)
    return product_NO


@_grouped_linear_op.register_fake
def _grouped_linear_fake(
    rows_NI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, ends_E: Tensor, transposed: bool
) -> Tensor:
    return rows_NI.new_empty(rows_NI.shape[0], weight_EOI.shape[2 if transposed else 1])


@device_op("pathmoe::grouped_outer")
def _grouped_outer_op(left_NO: Tensor, right_NI: Tensor, ends_E: Tensor) -> Tensor:
    """Each expert's left rows, transposed, times its right rows: [E, O, I]."""
    outer, inner = left_NO.shape[1], right_NI.shape[1]
    if runs_triton(left_NO):
        return rows_by_rows(align(left_NO, 1), align(right_NI, 1), ends_E)[:, :outer, :inner].contiguous()
    product_EOI = left_NO.new_empty(len(ends_E), outer, inner)
    for product_OI, rows in zip(product_EOI.unbind(), _rows_of_experts(ends_E), strict=True):
        torch.mm(left_NO[rows].T, right_NI[rows], out=product_OI)
    return product_EOI


@_grouped_outer_op.register_fake
def _grouped_outer_fake(left_NO: Tensor, right_NI: Tensor, ends_E: Tensor) -> Tensor:
    return left_NO.new_empty(ends_E.shape[0], left_NO.shape[1], right_NI.shape[1])


@device_op("pathmoe::grouped_sum")
def _grouped_sum_op(rows_NO: Tensor, ends_E: Tensor) -> Tensor:
    """Sum of each expert's rows: [E, O]."""
    if runs_triton(rows_NO):
        # A GEMM with a block of ones, as narrow as its alignment lets it be, sums in fp32 and in a fixed order.
        ones_NB = rows_NO.new_ones(rows_NO.shape[0], ALIGNMENT // rows_NO.dtype.itemsize)
        return rows_by_rows(ones_NB, align(rows_NO, 1), ends_E)[:, 0, : rows_NO.shape[1]].contiguous()
    sum_EO = rows_NO.new_empty(len(ends_E), rows_NO.shape[1])
    for sum_O, rows in zip(sum_EO.unbind(), _rows_of_experts(ends_E), strict=True):
        torch.sum(rows_NO[rows], dim=0, out=sum_O)
    return sum_EO


@_grouped_sum_op.register_fake
def _grouped_sum_fake(rows_NO: Tensor, ends_E: Tensor) -> Tensor:
    return rows_NO.new_empty(ends_E.shape[0], rows_NO.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows_NI, weight_EOI, _, ends_E, ctx.transposed = inputs
    ctx.save_for_backward(rows_NI, weight_EOI, ends_E)


def _backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
    rows_NI, weight_EOI, ends_E = ctx.saved_tensors
    wants_rows, wants_weight, wants_bias, *_ = ctx.needs_input_grad
    grad_rows_NI = grad_weight_EOI = grad_bias_EO = None
    if wants_rows:
        grad_rows_NI = _grouped_linear_op(grad_NO, weight_EOI, None, ends_E, not ctx.transposed)
    if wants_weight:
        left, right = (rows_NI, grad_NO) if ctx.transposed else (grad_NO, rows_NI)
        grad_weight_EOI = _grouped_outer_op(left, right, ends_E)
    if wants_bias:
        grad_bias_EO = _grouped_sum_op(grad_NO, ends_E)
    return grad_rows_NI, grad_weight_EOI, grad_bias_EO, None, None


_grouped_linear_op.register_autograd(_backward, setup_context=_setup_context)
