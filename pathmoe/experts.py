"""The routed experts, and our dispatch as an experts implementation of transformers."""

# Shapes: T tokens, D hidden, E experts, K experts per token, F expert width, G = 2F, M rows from other ranks.

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.activations import ACT2FN
from transformers.integrations.moe import (
    ALL_EXPERTS_FUNCTIONS,
    ExpertsInterface,
    use_experts_implementation,
)

from pathmoe.config import PathMoEConfig
from pathmoe.expert_parallel import with_experts_of_all_ranks
from pathmoe.other_experts import is_plain_swiglu, other_experts_forward, refuse_what_no_op_serves
from pathmoe_kernels import Dispatch, expert_mlp, sort_by_expert
from pathmoe_kernels.autocast import to_autocast


class _Autocast(ExpertsInterface):
    """transformers' experts implementations, made to run in the dtype of autocast.

    Grouped GEMMs do not see autocast, and transformers gives them its input in the dtype of the weights: fp32.
    """

    def get_interface(self, experts_implementation: str, default: Callable) -> Callable:
        """The implementation of this name, or the default for `eager`."""
        forward = super().get_interface(experts_implementation, default)
        return forward if forward is pathmoe_experts_forward else partial(_under_autocast, forward)


def _under_autocast(
    forward: Callable,
    experts: "Experts",
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    dispatch: Dispatch | None = None,  # theirs sort for themselves
) -> Tensor:
    output_TD = forward(_CastExperts(experts), to_autocast(hidden_states), top_k_index, top_k_weights)
    return output_TD.to(hidden_states.dtype)


class _CastExperts:
    """Experts with their weights in the dtype of autocast, as far as an experts implementation looks at them."""

    def __init__(self, experts: "Experts") -> None:
        self.experts = experts
        self.gate_up_proj, self.down_proj = to_autocast(experts.gate_up_proj), to_autocast(experts.down_proj)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.experts, name)


@use_experts_implementation(experts_interface=_Autocast())
class Experts(nn.Module):
    """SwiGLU experts as two 3-D parameters, in the layout that transformers' MoE models share."""

    def __init__(self, config: PathMoEConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.gate_up_proj = nn.Parameter(
            torch.empty(config.num_experts, 2 * config.moe_intermediate_size, config.hidden_size)
        )
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, config.moe_intermediate_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, dispatch: Dispatch | None = None
    ) -> Tensor:
        """Weighted sum [T, D] of each token's experts; `experts_implementation="eager"` runs this plain loop.

        A `dispatch` is for `pathmoe_experts_forward`, see there; neither this loop nor transformers' implementations
        read it.
        """
        sum_dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        output_TD = torch.zeros(hidden_states.shape, dtype=sum_dtype, device=hidden_states.device)
        for e in range(self.num_experts):
            token, choice = (top_k_index == e).nonzero(as_tuple=True)
            gate, up = nn.functional.linear(hidden_states[token], self.gate_up_proj[e]).chunk(2, dim=-1)
            expert_output = nn.functional.linear(self.act_fn(gate) * up, self.down_proj[e])
            output_TD = output_TD.index_add(0, token, expert_output.to(sum_dtype) * top_k_weights[token, choice, None])
        return output_TD.to(hidden_states.dtype)


def pathmoe_experts_forward(
    experts: Any,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    dispatch: Dispatch | None = None,
) -> Tensor:
    """Our kernels for any experts module of transformers: `experts_implementation="pathmoe"`.

    Args:
        experts: module of the layout that its `use_experts_implementation` declares.
        hidden_states: [T, D].
        top_k_index: [T, K] integer; an id outside 0 .. E - 1 is no expert, as under expert parallelism.
        top_k_weights: [T, K].
        dispatch: the rows of `top_k_index` sorted by expert, where they are at hand.

    Raises:
        ValueError: weights that are not there, or quantised, or sharded otherwise than by `training.sharding`.
    """
    if isinstance(experts, Experts) and isinstance(experts.down_proj, DTensor):
        return _expert_parallel_forward(experts, hidden_states, top_k_index, top_k_weights)
    refuse_what_no_op_serves(experts)
    if dispatch is None:
        dispatch = sort_by_expert(top_k_index, experts.down_proj.shape[0])
    if is_plain_swiglu(experts):
        output_TD = expert_mlp(hidden_states, top_k_weights, experts.gate_up_proj, experts.down_proj, dispatch)
    else:
        output_TD = other_experts_forward(experts, hidden_states, top_k_weights, dispatch)
    return output_TD.to(hidden_states.dtype)


def _expert_parallel_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The same where each rank of a mesh holds some of the experts.

    Their gradients are divided by the number of ranks, whose tokens they sum over: averaged over the groups of ranks
    that share the experts, they are then averages over all ranks, as those of other parameters are.
    """
    group = experts.down_proj.device_mesh.get_group()
    gate_up_EGD, down_EDF = (
        _of_this_rank(weight, group.size()) for weight in (experts.gate_up_proj, experts.down_proj)
    )

    def local_experts(x_MD: Tensor, ids_MK: Tensor, weights_MK: Tensor) -> Tensor:
        return expert_mlp(x_MD, weights_MK, gate_up_EGD, down_EDF, sort_by_expert(ids_MK, len(down_EDF)))

    output_TD = with_experts_of_all_ranks(
        local_experts, hidden_states, top_k_index, top_k_weights, len(down_EDF), group
    )
    return output_TD.to(hidden_states.dtype)


def _of_this_rank(weight: Any, num_ranks: int) -> Tensor:
    local: Tensor = weight.to_local()
    if local.requires_grad:
        local.register_hook(lambda gradient: gradient / num_ranks)
    return local


ALL_EXPERTS_FUNCTIONS.register("pathmoe", pathmoe_experts_forward)
