"""Counting sort of routed tokens by expert."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows.

import torch
from torch import Tensor


def sort_by_expert(expert_ids_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Stable order of the routed rows by expert, and where each expert's rows end.

    Args:
        expert_ids_TK: [T, K] integer ids from 0; one of num_experts or more sorts last and belongs to no expert.
        num_experts: E.

    Returns:
        order_N: [N] int64; the sorted position j holds row `order_N[j]` of the flattened [T, K], so that the token is
            `order_N[j] // K`. Rows of one expert keep their order.
        ends_E: [E] int32; expert e has sorted positions `ends_E[e - 1]` (0 for the first) up to `ends_E[e]`.
    """
    sorted_ids_N, order_N = expert_ids_TK.reshape(-1).sort(stable=True)
    # Ends by binary search: `bincount` would wait for the device.
    experts_E = torch.arange(num_experts, device=expert_ids_TK.device, dtype=expert_ids_TK.dtype)
    return order_N, torch.searchsorted(sorted_ids_N, experts_E, right=True, out_int32=True)
