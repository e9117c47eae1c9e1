"""Triton kernels that turn expert ids into sorted positions: histograms of chunks, their scan, and the placement."""

# Shapes: N routed rows, E experts, C chunks of consecutive rows, R rows that a program places at a time.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathmoe_kernels.launch import OPTIONS, num_persistent_programs, ticket

ROWS_AT_A_TIME = 32
CHUNKS_AT_A_TIME = 16


@triton.jit
def is_last_program(ticket_ptr):
    """True in the program that gets here last, which then sees what all others have stored."""
    # The ticket is drawn by one thread: the others' stores must have been made before it.
    tl.debug_barrier()
    drawn = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu")
    return drawn == tl.num_programs(0) - 1


@triton.jit
def sum_chunks(chunks_ptr, num_chunks, num_columns, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr):
    """Sum [BLOCK_E] of a [C, E] array over chunks, in the order of the chunks."""
    column = tl.arange(0, BLOCK_E)
    total = tl.zeros([BLOCK_E], dtype=chunks_ptr.dtype.element_ty)
    for first in range(0, num_chunks, BLOCK_C):
        chunk = first + tl.arange(0, BLOCK_C)
        inside = (chunk < num_chunks)[:, None] & (column < num_columns)[None, :]
        # Past the first-level cache, which may hold what was there before the other programs wrote.
        tile = tl.load(chunks_ptr + chunk[:, None] * num_columns + column[None, :], inside, 0, cache_modifier=".cg")
        total += tl.sum(tile, axis=0)
    return total


@triton.jit
def scan_chunks(counts_ptr, ends_ptr, num_chunks, num_experts, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr):
    """Replace rows per chunk and expert [C, E] by the sorted position of the first of them, and store `ends` [E].

    Returns the rows of each expert [BLOCK_E].
    """
    expert = tl.arange(0, BLOCK_E)
    total = sum_chunks(counts_ptr, num_chunks, num_experts, BLOCK_C, BLOCK_E)
    ends = tl.cumsum(total, axis=0)
    tl.store(ends_ptr + expert, ends, expert < num_experts)
    start = ends - total
    # All threads have read the counts before any writes over them.
    tl.debug_barrier()
    for first in range(0, num_chunks, BLOCK_C):
        chunk = first + tl.arange(0, BLOCK_C)
        inside = (chunk < num_chunks)[:, None] & (expert < num_experts)[None, :]
        tile_ptr = counts_ptr + chunk[:, None] * num_experts + expert[None, :]
        counts = tl.load(tile_ptr, inside, 0, cache_modifier=".cg")
        tl.store(tile_ptr, start[None, :] + tl.cumsum(counts, axis=0) - counts, inside)
        start += tl.sum(counts, axis=0)
    return total


@triton.jit
def count_rows_kernel(
    ids_ptr, chunk_starts_ptr, ends_ptr, ticket_ptr, num_rows, rows_per_chunk,
    E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Rows of each chunk per expert, then, in the last program, their scan."""
    expert = tl.arange(0, BLOCK_E)
    num_chunks = tl.cdiv(num_rows, rows_per_chunk)
    for chunk in range(tl.program_id(0), num_chunks, tl.num_programs(0)):
        count = tl.zeros([BLOCK_E], dtype=tl.int32)
        for first in range(0, rows_per_chunk, BLOCK_R):
            in_chunk = first + tl.arange(0, BLOCK_R)
            row = chunk * rows_per_chunk + in_chunk
            ids = tl.load(ids_ptr + row, (in_chunk < rows_per_chunk) & (row < num_rows), E)
            count += tl.sum((ids[:, None] == expert[None, :]).to(tl.int32), axis=0)
        tl.store(chunk_starts_ptr + chunk * E + expert, count, expert < E)
    if is_last_program(ticket_ptr):
        scan_chunks(chunk_starts_ptr, ends_ptr, num_chunks, E, BLOCK_C, BLOCK_E)
        tl.store(ticket_ptr, 0)


@triton.jit
def place_rows_kernel(
    ids_ptr, chunk_starts_ptr, ends_ptr, order_ptr, position_ptr, num_rows, rows_per_chunk,
    E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sorted position of each row of one chunk, and the inverse."""
    chunk = tl.program_id(0)
    expert = tl.arange(0, BLOCK_E)
    real = expert < E
    start = tl.load(chunk_starts_ptr + chunk * E + expert, real, 0)
    end = tl.load(ends_ptr + expert, real, 0)
    # Rows of no expert come after all others. Before this chunk there are as many of them as rows that no expert took.
    first_of_expert = tl.load(ends_ptr + expert - 1, real & (expert > 0), 0)
    taken_before = tl.sum(start - first_of_expert, axis=0)
    rest = tl.max(end, axis=0) + chunk * rows_per_chunk - taken_before
    for first in range(0, rows_per_chunk, BLOCK_R):
        in_chunk = first + tl.arange(0, BLOCK_R)
        row = chunk * rows_per_chunk + in_chunk
        inside = (in_chunk < rows_per_chunk) & (row < num_rows)
        ids = tl.load(ids_ptr + row, inside, E)
        hit = ((ids[:, None] == expert[None, :]) & real[None, :]).to(tl.int32)
        before = tl.cumsum(hit, axis=0) - hit
        position = tl.sum(hit * (start[None, :] + before), axis=1)
        none = (inside & (tl.sum(hit, axis=1) == 0)).to(tl.int32)
        position = tl.where(none == 1, rest + tl.cumsum(none, axis=0) - 1, position)
        tl.store(position_ptr + row, position, inside)
        tl.store(order_ptr + position, row, inside)
        start += tl.sum(hit, axis=0)
        rest += tl.sum(none, axis=0)


def expert_block(num_experts: int) -> int:
    """Width of the tiles that hold a column an expert: a power of two, and at least what a tensor core multiplies."""
    return max(16, triton.next_power_of_2(num_experts))


def count_rows(ids_N: Tensor, num_experts: int, rows_per_chunk: int) -> tuple[Tensor, Tensor]:
    """Where each chunk's rows of each expert start in sorted order [C, E], and each expert's end [E]; both int32."""
    num_chunks = triton.cdiv(ids_N.numel(), rows_per_chunk)
    chunk_starts_CE = torch.empty(num_chunks, num_experts, dtype=torch.int32, device=ids_N.device)
    ends_E = torch.empty(num_experts, dtype=torch.int32, device=ids_N.device)
    grid: Any = (num_persistent_programs(num_chunks, ids_N.device),)
    count_rows_kernel[grid](
        ids_N, chunk_starts_CE, ends_E, ticket(ids_N.device), ids_N.numel(), rows_per_chunk,
        E=num_experts, BLOCK_R=ROWS_AT_A_TIME, BLOCK_C=CHUNKS_AT_A_TIME, BLOCK_E=expert_block(num_experts), **OPTIONS,
    )  # fmt: skip
    return chunk_starts_CE, ends_E


def place_rows(ids_N: Tensor, chunk_starts_CE: Tensor, ends_E: Tensor, rows_per_chunk: int) -> tuple[Tensor, Tensor]:
    """The stable order [N] by expert and its inverse [N], int32."""
    order_N = torch.empty(ids_N.numel(), dtype=torch.int32, device=ids_N.device)
    position_N = torch.empty_like(order_N)
    num_chunks, num_experts = chunk_starts_CE.shape
    if num_chunks:
        place_rows_kernel[(num_chunks,)](
            ids_N, chunk_starts_CE, ends_E, order_N, position_N, ids_N.numel(), rows_per_chunk,
            E=num_experts, BLOCK_R=ROWS_AT_A_TIME, BLOCK_E=expert_block(num_experts), **OPTIONS,
        )  # fmt: skip
    return order_N, position_N
