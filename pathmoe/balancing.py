"""Load balancing: the Switch loss, the z-loss, and selection biases without a loss. All per layer, then averaged."""

# Shapes: T tokens, E experts, L deciding layers.

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pathmoe.routing import Routing
from pathmoe_kernels import Routed


def switch_loss(routed: Routed, load_E: Tensor | None = None) -> Tensor:
    """Switch load-balancing loss of one layer: E * sum_e f_e P_e (Fedus et al. 2021, equations 4-6).

    f_e is the number of tokens that chose expert e over the number of tokens: it sums to K over experts, as in
    transformers (OLMoE) and not to 1, so that the loss of a uniform load is K. P_e is the mean over tokens of the score
    of e among all experts; sigmoid scores are first scaled to sum to one, or shrinking them all would lower the loss.
    Padding counts in neither.

    Args:
        routed: routed with `probability_sum`; the gradient reaches the logits through P alone.
        load_E: [E] tokens per expert to take f from instead of this routing's: those of the global batch so far.

    Returns:
        Scalar fp32.
    """
    num_choices, num_experts = routed.expert_ids_TK.shape[1], routed.load_E.shape[0]
    assert len(routed.probability_sum_E) == num_experts, "routed without probability_sum"
    num_tokens = (routed.load_E.sum() / num_choices).clamp(min=1)
    load_E = routed.load_E.float() if load_E is None else load_E.float()
    fraction_E = num_choices * load_E / load_E.sum().clamp(min=1)
    return num_experts * (fraction_E * routed.probability_sum_E / num_tokens).sum()


def z_loss(logsumexp_T: Tensor, token_mask_T: Tensor | None = None) -> Tensor:
    """Mean over tokens of the squared log-sum-exp of router logits (ST-MoE, Zoph et al. 2022, equation 5).

    Args:
        logsumexp_T: [T] of the router logits.
        token_mask_T: [T] bool, False for padding.
    """
    squared_T = logsumexp_T.square()
    if token_mask_T is None:
        return squared_T.mean()
    return (squared_T * token_mask_T).sum() / token_mask_T.sum().clamp(min=1)


@torch.no_grad()
def expert_load(routings: Sequence[Routing]) -> Tensor:
    """Tokens per expert of each deciding layer: [L, E] int64, without padding.

    Args:
        routings: of the deciding layers, so that a shared decision counts once.
    """
    return torch.stack([routing.routed.load_E for routing in routings]).long()


@torch.no_grad()
def sum_over_ranks(load_LE: Tensor) -> Tensor:
    """The load of all data-parallel ranks; on one process, the load itself."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        load_LE = load_LE.clone()
        dist.all_reduce(load_LE)
    return load_LE


@torch.no_grad()
def update_selection_bias(selection_bias_E: Tensor, load_E: Tensor, rate: float) -> None:
    """Raise the bias of underloaded experts by `rate` and lower that of overloaded ones, in place.

    b_e += rate * sign(mean load - load_e) (Wang et al. 2024, arXiv 2408.15664, algorithm 1).

    Args:
        selection_bias_E: [E] fp32.
        load_E: [E] tokens per expert of the whole optimizer step, all ranks and micro-batches.
        rate: step size, in units of score.
    """
    # Times E, integers stay integers: the mean of a large balanced load would round to another number than the load.
    selection_bias_E.add_(torch.sign(load_E.sum() - load_E.numel() * load_E), alpha=rate)
