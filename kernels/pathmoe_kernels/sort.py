"""Counting sort of routed tokens by expert."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, C chunks of rows.

import torch
from torch import Tensor

from pathmoe_kernels.device import device_op, runs_triton
from pathmoe_kernels.route_rule import MAX_ROWS, Dispatch
from pathmoe_kernels.sort_reference import sort_reference

ROWS_PER_CHUNK = 512


def sort_by_expert(expert_ids_TK: Tensor, num_experts: int) -> Dispatch:
    """Stable order of the routed rows by expert, its inverse, and where each expert's rows end.

    On a GPU two kernels, without waiting for it.

    Args:
        expert_ids_TK: [T, K] integer ids; one outside 0 .. num_experts - 1 sorts last and belongs to no expert.
        num_experts: E.

    Raises:
        ValueError: more than 2^26 rows.
    """
    if expert_ids_TK.numel() > MAX_ROWS:
        raise ValueError(f"expert_ids ({expert_ids_TK.numel()} rows) must be at most 2^26; split the batch")
    if expert_ids_TK.dtype not in (torch.int32, torch.int64):
        # E itself, which marks what has no expert, may not fit.
        expert_ids_TK = expert_ids_TK.int()
    return Dispatch(*_sort_op(expert_ids_TK, num_experts))


@device_op("pathmoe::sort_by_expert")
def _sort_op(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    if not runs_triton(expert_ids_TK):
        order_N, position_N, ends_E = sort_reference(expert_ids_TK, num_experts)
        return order_N, position_N, ends_E
    from pathmoe_kernels.metadata_triton import count_rows, place_rows

    ids_N = expert_ids_TK.contiguous().view(-1)
    chunk_starts_CE, ends_E = count_rows(ids_N, num_experts, ROWS_PER_CHUNK)
    return *place_rows(ids_N, chunk_starts_CE, ends_E, ROWS_PER_CHUNK), ends_E


@_sort_op.register_fake
def _sort_fake(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    order_N = expert_ids_TK.new_empty(expert_ids_TK.numel(), dtype=torch.int32)
    return order_N, torch.empty_like(order_N), expert_ids_TK.new_empty(num_experts, dtype=torch.int32)
