"""Triton kernels of the activation between the experts' GEMMs, forward and backward."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, F expert width, G = 2F (gate, then up).

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathmoe_kernels.launch import OPTIONS
from pathmoe_kernels.route_tiles import sigmoid

BLOCK_ROWS = 8
BLOCK_COLUMNS = 256


@triton.jit
def swiglu_kernel(
    pre_activation_ptr, last_end_ptr, activation_ptr, num_rows, width, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr
):
    """silu(gate) * up; zeros in the rows of no expert."""
    position = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    within = (column < width)[None, :]
    inside = (position < num_rows)[:, None] & within
    taken = inside & (position < tl.load(last_end_ptr))[:, None]
    row = position[:, None].to(tl.int64)
    gate_ptrs = pre_activation_ptr + row * (2 * width) + column[None, :]
    gate = tl.load(gate_ptrs, taken, 0.0).to(tl.float32)
    up = tl.load(gate_ptrs + width, taken, 0.0).to(tl.float32)
    tl.store(activation_ptr + row * width + column[None, :], gate * sigmoid(gate) * up, inside)


@triton.jit
def swiglu_backward_kernel(
    pre_activation_ptr, grad_ptr, order_ptr, weights_ptr, last_end_ptr,
    grad_pre_activation_ptr, weighted_activation_ptr, grad_weights_ptr, num_rows, width,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Gradients of the pre-activation and of the routing weights, and the weighted activation, in one pass."""
    position = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = position < num_rows
    taken = inside & (position < tl.load(last_end_ptr))
    row = tl.load(order_ptr + position, inside, 0)
    weight = tl.load(weights_ptr + row, taken, 0.0).to(tl.float32)[:, None]
    dot = tl.zeros([BLOCK_R], dtype=tl.float32)
    offset = position[:, None].to(tl.int64)
    for first in range(0, width, BLOCK_W):
        column = first + tl.arange(0, BLOCK_W)[None, :]
        within = column < width
        gate_offset = offset * (2 * width) + column
        gate = tl.load(pre_activation_ptr + gate_offset, taken[:, None] & within, 0.0).to(tl.float32)
        up = tl.load(pre_activation_ptr + gate_offset + width, taken[:, None] & within, 0.0).to(tl.float32)
        grad = tl.load(grad_ptr + offset * width + column, taken[:, None] & within, 0.0).to(tl.float32)
        slope = sigmoid(gate)
        silu = gate * slope
        dot += tl.sum(grad * silu * up, axis=1)
        grad = grad * weight
        stored = inside[:, None] & within
        # d silu(g) = sigmoid(g) + silu(g) (1 - sigmoid(g))
        tl.store(grad_pre_activation_ptr + gate_offset, grad * up * (slope + silu * (1.0 - slope)), stored)
        tl.store(grad_pre_activation_ptr + gate_offset + width, grad * silu, stored)
        tl.store(weighted_activation_ptr + offset * width + column, silu * up * weight, stored)
    tl.store(grad_weights_ptr + row, dot, inside)


def swiglu(pre_activation_NG: Tensor, ends_E: Tensor) -> Tensor:
    """silu(gate) * up, [N, F] in the input's dtype; zeros in rows past the last expert's."""
    num_rows, width = pre_activation_NG.shape[0], pre_activation_NG.shape[1] // 2
    activation_NF = pre_activation_NG.new_empty(num_rows, width)
    if activation_NF.numel():
        grid = (triton.cdiv(num_rows, BLOCK_ROWS), triton.cdiv(width, BLOCK_COLUMNS))
        swiglu_kernel[grid](
            pre_activation_NG, ends_E[-1:], activation_NF, num_rows, width,
            BLOCK_R=BLOCK_ROWS, BLOCK_W=BLOCK_COLUMNS, **OPTIONS,
        )  # fmt: skip
    return activation_NF


def swiglu_backward(
    pre_activation_NG: Tensor, grad_NF: Tensor, order_N: Tensor, weights_TK: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient [N, 2F] of the pre-activation, activation times weight [N, F], and gradient [T, K] of the weights.

    Args:
        pre_activation_NG: [N, 2F], gate then up.
        grad_NF: [N, F] gradient of the unweighted activation: dy through the down projection.
        order_N: [N] int32 row of each sorted position.
        weights_TK: [T, K].
        ends_E: [E] int32.
    """
    num_rows, width = grad_NF.shape
    grad_pre_activation_NG, weighted_NF = torch.empty_like(pre_activation_NG), torch.empty_like(grad_NF)
    grad_weights_TK = torch.empty_like(weights_TK)
    if grad_NF.numel():
        swiglu_backward_kernel[(triton.cdiv(num_rows, BLOCK_ROWS),)](
            pre_activation_NG, grad_NF, order_N, weights_TK, ends_E[-1:],
            grad_pre_activation_NG, weighted_NF, grad_weights_TK, num_rows, width,
            BLOCK_R=BLOCK_ROWS, BLOCK_W=BLOCK_COLUMNS, **OPTIONS,
        )  # fmt: skip
    return grad_pre_activation_NG, weighted_NF, grad_weights_TK
