"""Triton kernel that sets the weight gradients of experts without rows to zero."""

# Shapes: E experts, I and O the sides of an expert's matrix.

import triton
import triton.language as tl
from torch import Tensor

from pathmoe_kernels.launch import OPTIONS

BLOCK = 1024
PROGRAMS_PER_EXPERT = 64


@triton.jit
def zero_empty_groups_kernel(product_ptr, ends_ptr, size, BLOCK: tl.constexpr):
    """product[e] = 0 for each expert e without rows; the others are not touched."""
    expert = tl.program_id(0)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, expert > 0, 0)
    if start == end:
        target_ptr = product_ptr + expert.to(tl.int64) * size
        zeros = tl.zeros([BLOCK], dtype=product_ptr.dtype.element_ty)
        for first in range(tl.program_id(1) * BLOCK, size, tl.num_programs(1) * BLOCK):
            cell = first + tl.arange(0, BLOCK)
            tl.store(target_ptr + cell, zeros, cell < size)


def zero_empty_groups(product_EIO: Tensor, ends_E: Tensor) -> Tensor:
    """The product [E, I, O] itself, with zeros written to the matrices of experts without rows."""
    assert product_EIO.is_contiguous()
    num_experts, size = product_EIO.shape[0], product_EIO.shape[1:].numel()
    if product_EIO.numel():
        grid = (num_experts, min(triton.cdiv(size, BLOCK), PROGRAMS_PER_EXPERT))
        zero_empty_groups_kernel[grid](product_EIO, ends_E, size, BLOCK=BLOCK, **OPTIONS)
    return product_EIO
