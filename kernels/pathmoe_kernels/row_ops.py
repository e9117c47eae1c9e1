"""Rows to the experts and back, as ops with gradients: what lies around experts that `expert_mlp` does not know."""

# Shapes: T tokens, K experts per token, N = T*K routed rows, E experts, D hidden.

from typing import Any

import torch
from torch import Tensor

from pathmoe_kernels import rows_reference
from pathmoe_kernels.autocast import to_autocast
from pathmoe_kernels.device import device_op, runs_triton
from pathmoe_kernels.route_rule import Dispatch


def dispatch_rows(x_TD: Tensor, dispatch: Dispatch, num_experts_per_tok: int) -> Tensor:
    """Each routed row's token, sorted by expert: [N, D]; zeros in the rows of no expert.

    Under autocast in its dtype. The gradient of a token is the sum of its rows', in fp32 at least, whatever the rows of
    no expert hold.

    Args:
        x_TD: [T, D] floating point.
        dispatch: the routed rows sorted by expert, from `route` or `sort_by_expert`.
        num_experts_per_tok: K.
    """
    return _dispatch_rows_op(to_autocast(x_TD), *dispatch, num_experts_per_tok)


def combine_rows(y_ND: Tensor, weights_TK: Tensor, dispatch: Dispatch) -> Tensor:
    """Each token's rows times their weights, summed in fp32 at least: [T, D] in the rows' dtype.

    What the rows of no expert hold changes nothing: they add nothing, and they and their weights have zero gradients.

    Args:
        y_ND: [N, D] floating point, sorted by expert.
        weights_TK: [T, K] floating point.
        dispatch: the order of the rows.
    """
    return _combine_rows_op(y_ND, weights_TK, *dispatch, weights_TK.shape[1])


def sum_rows(y_ND: Tensor, dispatch: Dispatch, num_experts_per_tok: int) -> Tensor:
    """Each token's rows, summed in fp32 at least: [T, D] in the rows' dtype; nothing of size [N, D] is saved.

    Args:
        y_ND: [N, D] floating point, sorted by expert; rows of no expert add nothing, and have zero gradients.
        dispatch: the order of the rows.
        num_experts_per_tok: K.
    """
    return _combine_rows_op(y_ND, None, *dispatch, num_experts_per_tok)


def clear_rows_of_no_expert(rows_ND: Tensor, ends_E: Tensor) -> None:
    """Set the rows past the last expert's to zero, in place; on a GPU without waiting for it."""
    if runs_triton(rows_ND):
        position_N = torch.arange(rows_ND.shape[0], device=rows_ND.device)
        rows_ND.masked_fill_((position_N >= ends_E[-1])[:, None], 0.0)
    else:
        rows_ND[int(ends_E[-1]) :].zero_()


def _gathered(x_TD: Tensor, dispatch: Dispatch, num_choices: int) -> Tensor:
    if not runs_triton(x_TD):
        return rows_reference.gather_rows(x_TD, dispatch, num_choices)
    from pathmoe_kernels import rows_triton

    return rows_triton.gather_rows(x_TD.contiguous(), dispatch, num_choices)


def _combined(y_ND: Tensor, weights_TK: Tensor | None, dispatch: Dispatch, num_choices: int) -> Tensor:
    if not runs_triton(y_ND):
        return rows_reference.combine_rows(y_ND, dispatch, weights_TK, num_choices)
    from pathmoe_kernels import rows_triton

    weights_TK = None if weights_TK is None else weights_TK.contiguous()
    return rows_triton.combine_rows(y_ND.contiguous(), dispatch, weights_TK, num_choices)


@device_op("pathmoe::dispatch_rows")
def _dispatch_rows_op(x_TD: Tensor, order_N: Tensor, position_N: Tensor, ends_E: Tensor, num_choices: int) -> Tensor:
    return _gathered(x_TD, Dispatch(order_N, position_N, ends_E), num_choices)


@_dispatch_rows_op.register_fake
def _dispatch_rows_fake(x_TD: Tensor, order_N: Tensor, position_N: Tensor, ends_E: Tensor, num_choices: int) -> Tensor:
    return x_TD.new_empty(order_N.shape[0], x_TD.shape[1])


def _save_dispatch(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *dispatch, ctx.num_choices = inputs
    ctx.save_for_backward(*dispatch)


def _dispatch_rows_backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
    return _combine_rows_op(grad_ND, None, *ctx.saved_tensors, ctx.num_choices), None, None, None, None


_dispatch_rows_op.register_autograd(_dispatch_rows_backward, setup_context=_save_dispatch)


@device_op("pathmoe::combine_rows")
def _combine_rows_op(
    y_ND: Tensor, weights_TK: Tensor | None, order_N: Tensor, position_N: Tensor, ends_E: Tensor, num_choices: int
) -> Tensor:
    return _combined(y_ND, weights_TK, Dispatch(order_N, position_N, ends_E), num_choices)


@_combine_rows_op.register_fake
def _combine_rows_fake(
    y_ND: Tensor, weights_TK: Tensor | None, order_N: Tensor, position_N: Tensor, ends_E: Tensor, num_choices: int
) -> Tensor:
    return y_ND.new_empty(y_ND.shape[0] // num_choices, y_ND.shape[1])


@device_op("pathmoe::combine_rows_backward")
def _combine_rows_backward_op(
    grad_TD: Tensor, y_ND: Tensor, weights_TK: Tensor, order_N: Tensor, position_N: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    grad_y_ND = _gathered(grad_TD, Dispatch(order_N, position_N, ends_E), weights_TK.shape[1])
    sum_dtype = torch.promote_types(y_ND.dtype, torch.float32)
    # In half precision a product of two numbers can overflow where the sum of all does not.
    dot_N1 = (grad_y_ND.to(sum_dtype) * y_ND).sum(dim=-1, keepdim=True)
    # A gradient of zero would not do: what lies in those rows may be NaN.
    clear_rows_of_no_expert(dot_N1, ends_E)
    grad_weights_TK = dot_N1.index_select(0, position_N).view_as(weights_TK).to(weights_TK.dtype)
    weights_N1 = weights_TK.reshape(-1, 1).index_select(0, order_N)
    # Nor may the weights of those rows count, which may be infinite.
    clear_rows_of_no_expert(weights_N1, ends_E)
    return grad_y_ND.mul_(weights_N1), grad_weights_TK


@_combine_rows_backward_op.register_fake
def _combine_rows_backward_fake(
    grad_TD: Tensor, y_ND: Tensor, weights_TK: Tensor, order_N: Tensor, position_N: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    return y_ND.new_empty(y_ND.shape), weights_TK.new_empty(weights_TK.shape)


def _save_weighted(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y_ND, weights_TK, *dispatch, ctx.num_choices = inputs
    ctx.save_for_backward(None if weights_TK is None else y_ND, weights_TK, *dispatch)


def _combine_rows_backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
    y_ND, weights_TK, *dispatch = ctx.saved_tensors
    if weights_TK is None:
        return _dispatch_rows_op(grad_TD, *dispatch, ctx.num_choices), None, None, None, None, None
    return *_combine_rows_backward_op(grad_TD, y_ND, weights_TK, *dispatch), None, None, None, None


_combine_rows_op.register_autograd(_combine_rows_backward, setup_context=_save_weighted)
