"""Expert parallelism: each rank of a group holds some of the experts, and tokens travel to them and back."""

# Shapes: T tokens of this rank, K experts per token, D hidden, R ranks of the group, N rows sent (a token once to each
# rank that has experts of it), M rows received.

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd, wait_tensor
from torch.nn.functional import pad

from pathmoe_kernels import Dispatch, dispatch_rows, sort_by_expert, sum_rows

LocalExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From rows [M, D], their expert ids [M, K] as this rank counts its own, and weights [M, K] to outputs [M, D]."""


class _Exchange(NamedTuple):
    """Which rows go where."""

    dispatch: Dispatch
    """The choices [T, K] sorted by rank; of several on one rank the first stands for all, and the others for none."""
    sent: list[int]
    """Rows to each rank."""
    received: list[int]
    """Rows from each rank."""
    group: dist.ProcessGroup

    def there(self, rows_N: Tensor) -> Tensor:
        """Rows to the ranks that they are for: [N, ...] to [M, ...]."""
        return _received(all_to_all_single_autograd(rows_N, self.received, self.sent, self.group))

    def back(self, rows_M: Tensor) -> Tensor:
        """Rows to the ranks that they came from: [M, ...] to [N, ...]."""
        return _received(all_to_all_single_autograd(rows_M, self.sent, self.received, self.group))


@torch.compiler.disable
def with_experts_of_all_ranks(
    local_experts: LocalExperts,
    x_TD: Tensor,
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    num_local_experts: int,
    group: dist.ProcessGroup,
) -> Tensor:
    """Weighted sum [T, D] of each token's experts, wherever in the group they are; every rank of it must call this.

    A token is sent once to each rank that has experts of it, with its ids and weights, and what comes back is those
    experts' weighted sum: at most min(K, R) rows a token travel, where one for each choice would be K. The numbers of
    rows are what the host has to know, so that it waits for the device once a call.

    Args:
        local_experts: this rank's experts.
        x_TD: [T, D] floating point; under autocast it travels in its dtype.
        expert_ids_TK: [T, K] integer; rank r of the group has experts r * num_local_experts and on. One outside of all
            ranks' is no expert.
        weights_TK: [T, K] floating point.
        num_local_experts: of each rank.
        group: the ranks that share the experts.
    """
    exchange = _exchange(expert_ids_TK, num_local_experts, group)
    num_tokens, num_choices = expert_ids_TK.shape
    num_rows = sum(exchange.sent)
    # An index takes the weights along, since adding up their gradients is exact: all but one of them are zero.
    token_N = exchange.dispatch.order_N[:num_rows] // num_choices
    x_MD = exchange.there(dispatch_rows(x_TD, exchange.dispatch, num_choices)[:num_rows])
    weights_MK = exchange.there(weights_TK.index_select(0, token_N))
    ids_MK = exchange.there(expert_ids_TK.index_select(0, token_N)) - group.rank() * num_local_experts
    y_ND = exchange.back(local_experts(x_MD, ids_MK, weights_MK))
    rows_ND = pad(y_ND, (0, 0, 0, num_tokens * num_choices - num_rows))
    return sum_rows(rows_ND, exchange.dispatch, num_choices)


def _exchange(expert_ids_TK: Tensor, num_local_experts: int, group: dist.ProcessGroup) -> _Exchange:
    num_ranks = group.size()
    rank_TK = torch.div(expert_ids_TK, num_local_experts, rounding_mode="floor")
    again_TK = (rank_TK[:, :, None] == rank_TK[:, None, :]).tril(-1).any(-1)
    dispatch = sort_by_expert(rank_TK.masked_fill(again_TK, num_ranks), num_ranks)
    sent_R = dispatch.ends_E.diff(prepend=dispatch.ends_E.new_zeros(1))
    received_R = torch.empty_like(sent_R)
    dist.all_to_all_single(received_R, sent_R, group=group)
    sent, received = torch.stack([sent_R, received_R]).tolist()
    return _Exchange(dispatch, sent, received, group)


def _received(rows: Tensor) -> Tensor:
    # Kernels read memory that a pending result does not have yet.
    return wait_tensor(rows)
