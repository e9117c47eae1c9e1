"""Triton kernels that move rows: tokens to their experts' rows, and those rows back, weighted and summed."""

# Shapes: T tokens, K experts per token, N = T*K routed rows, E experts, D hidden.

import triton
import triton.language as tl
from torch import Tensor

from pathmoe_kernels.launch import OPTIONS
from pathmoe_kernels.route_rule import Dispatch

BLOCK_ROWS = 8
BLOCK_COLUMNS = 512


@triton.jit
def gather_rows_kernel(
    source_ptr, position_ptr, last_end_ptr, target_ptr, num_tokens, width,
    K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """target[position[t, k]] = source[t], with zeros in the rows of no expert.

    By tokens, so that each row is read once: by positions it would be K times, of a source larger than the cache.
    """
    token = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    inside = token < num_tokens
    stored = inside[:, None] & (column < width)[None, :]
    last_end = tl.load(last_end_ptr)
    rows = tl.load(source_ptr + token[:, None].to(tl.int64) * width + column[None, :], stored, 0.0)
    for k in range(K):
        position = tl.load(position_ptr + token.to(tl.int64) * K + k, inside, 0)
        taken = (position < last_end)[:, None]
        target_ptrs = target_ptr + position[:, None].to(tl.int64) * width + column[None, :]
        tl.store(target_ptrs, tl.where(taken, rows, 0.0), stored)


@triton.jit
def combine_rows_kernel(
    source_ptr, position_ptr, last_end_ptr, weights_ptr, target_ptr, num_tokens, width,
    K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """target[t] = sum_k weights[t, k] source[position[t, k]] in fp32, in the order of k, without rows of no expert."""
    token = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    inside = token < num_tokens
    within = (column < width)[None, :]
    last_end = tl.load(last_end_ptr)
    total = tl.zeros([BLOCK_R, BLOCK_W], dtype=tl.float32)
    for k in range(K):
        choice = token.to(tl.int64) * K + k
        position = tl.load(position_ptr + choice, inside, 0)
        # A weight of zero would not do: what lies in those rows may be NaN.
        taken = inside & (position < last_end)
        source_ptrs = source_ptr + position[:, None].to(tl.int64) * width + column[None, :]
        rows = tl.load(source_ptrs, taken[:, None] & within, 0.0).to(tl.float32)
        if WEIGHTED:
            rows = rows * tl.load(weights_ptr + choice, taken, 0.0).to(tl.float32)[:, None]
        total += rows
    tl.store(target_ptr + token[:, None].to(tl.int64) * width + column[None, :], total, inside[:, None] & within)


def _blocks(num_rows: int, width: int) -> tuple[tuple[int, int], int, int]:
    """Grid, rows and columns of a program."""
    columns = min(BLOCK_COLUMNS, triton.next_power_of_2(width))
    rows = BLOCK_ROWS * BLOCK_COLUMNS // columns
    return (triton.cdiv(num_rows, rows), triton.cdiv(width, columns)), rows, columns


def gather_rows(source_TD: Tensor, dispatch: Dispatch, num_choices: int) -> Tensor:
    """Each sorted position's token row, [N, D]; zeros at the positions of no expert."""
    num_tokens, width = source_TD.shape
    target_ND = source_TD.new_empty(num_tokens * num_choices, width)
    if target_ND.numel():
        grid, rows, columns = _blocks(num_tokens, width)
        gather_rows_kernel[grid](
            source_TD, dispatch.position_N, dispatch.ends_E[-1:], target_ND, num_tokens, width,
            K=num_choices, BLOCK_R=rows, BLOCK_W=columns, **OPTIONS,
        )  # fmt: skip
    return target_ND


def combine_rows(source_ND: Tensor, dispatch: Dispatch, weights_TK: Tensor | None, num_choices: int) -> Tensor:
    """Each token's rows, weighted where weights are given, summed: [T, D] in the rows' dtype."""
    num_tokens, width = source_ND.shape[0] // num_choices, source_ND.shape[1]
    target_TD = source_ND.new_empty(num_tokens, width)
    if target_TD.numel():
        grid, rows, columns = _blocks(num_tokens, width)
        combine_rows_kernel[grid](
            source_ND, dispatch.position_N, dispatch.ends_E[-1:], weights_TK, target_TD, num_tokens, width,
            K=num_choices, WEIGHTED=weights_TK is not None, BLOCK_R=rows, BLOCK_W=columns, **OPTIONS,
        )  # fmt: skip
    return target_TD
