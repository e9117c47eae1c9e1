"""`sort_by_expert` in plain PyTorch."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows.

import numpy as np
import torch
from torch import Tensor

from pathmoe_kernels.route_rule import Dispatch


def sort_reference(expert_ids_TK: Tensor, num_experts: int) -> Dispatch:
    """See `sort_by_expert`."""
    ids_N = expert_ids_TK.reshape(-1)
    ids_N = ids_N.where((ids_N >= 0) & (ids_N < num_experts), num_experts)
    order_N = _stable_order(ids_N, num_experts)
    # Ends by binary search: `bincount` would wait for a device.
    experts_E = torch.arange(num_experts, device=ids_N.device, dtype=ids_N.dtype)
    ends_E = torch.searchsorted(ids_N[order_N], experts_E, right=True, out_int32=True)
    positions_N = torch.arange(len(order_N), dtype=torch.int32, device=order_N.device)
    return Dispatch(order_N.int(), torch.empty_like(positions_N).scatter_(0, order_N, positions_N), ends_E)


def _stable_order(ids_N: Tensor, num_experts: int) -> Tensor:
    if ids_N.device.type == "cpu" and num_experts <= np.iinfo(np.int16).max:
        # A radix sort, several times as fast as torch's.
        return torch.from_numpy(ids_N.to(torch.int16).numpy().argsort(kind="stable"))
    return ids_N.argsort(stable=True)
