"""Rows to the experts and back in plain PyTorch."""

# Shapes: T tokens, K experts per token, N = T*K routed rows, D hidden.

import torch
import torch.nn.functional as F
from torch import Tensor

from pathmoe_kernels.route_rule import Dispatch


def gather_rows(x_TD: Tensor, dispatch: Dispatch, num_choices: int) -> Tensor:
    """Each sorted position's token row, [N, D]; zeros at the positions of no expert."""
    rows_ND = x_TD.index_select(0, dispatch.order_N // num_choices)
    rows_ND[int(dispatch.ends_E[-1]) :].zero_()
    return rows_ND


def combine_rows(y_ND: Tensor, dispatch: Dispatch, weights_TK: Tensor | None, num_choices: int) -> Tensor:
    """Each token's rows, weighted where weights are given, summed in fp32 at least: [T, D] in the rows' dtype.

    What the rows of no expert hold changes nothing. An embedding bag, as it does it all in one threaded pass.
    """
    bags_TK, last_end = dispatch.position_N.view(-1, num_choices), int(dispatch.ends_E[-1])
    padding_idx = None
    if last_end < y_ND.shape[0]:
        # Of the rows of no expert an embedding bag can leave out only one.
        bags_TK, padding_idx = bags_TK.clamp(max=last_end), last_end
    dtype = torch.promote_types(y_ND.dtype, torch.float32)
    weights_TK = None if weights_TK is None else weights_TK.to(dtype)
    sums_TD = F.embedding_bag(
        bags_TK, y_ND.to(dtype), mode="sum", per_sample_weights=weights_TK, padding_idx=padding_idx
    )
    return sums_TD.to(y_ND.dtype)
