"""From router logits to a decision: which experts, with which weights."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, P router state width.

from typing import NamedTuple

import torch
from torch import Tensor

from pathmoe.config import PathMoEConfig
from pathmoe_kernels import choose_experts


class Routing(NamedTuple):
    """One layer's decision; what a layer that follows takes over as it is."""

    logits_TE: Tensor
    """Router logits, fp32, with any noise that the choice saw."""
    expert_ids_TK: Tensor
    """Chosen experts, int64, highest ranked first."""
    expert_weights_TK: Tensor
    """Weight of each chosen expert's output, fp32."""
    router_state_TP: Tensor | None = None
    """What a recurrent router carries to the next deciding layer, fp32."""


def expert_scores(logits_TE: Tensor, scoring_func: str) -> Tensor:
    """Scores of router logits: softmax over experts or elementwise sigmoid, in fp32."""
    return logits_TE.float().softmax(dim=-1) if scoring_func == "softmax" else logits_TE.float().sigmoid()


def decide(
    logits_TE: Tensor, config: PathMoEConfig, selection_bias_E: Tensor | None = None, state_TP: Tensor | None = None
) -> Routing:
    """Choose experts by score and weigh them.

    The order is softmax (or sigmoid) over all experts, then top-k, then renormalisation if `norm_topk_prob`, as in the
    RMoE code; the PathMoE paper is silent. The selection bias affects the choice and not the weights (Wang et al. 2024,
    arXiv 2408.15664). A NaN row of logits gives NaN weights.

    Args:
        logits_TE: [T, E] router logits.
        config: scoring_func, num_experts_per_tok, norm_topk_prob, routed_scaling_factor and force_uniform_routing are
            read.
        selection_bias_E: [E] fp32 added to the scores for the choice.
        state_TP: [T, P] router state to hand on.
    """
    scores_TE = expert_scores(logits_TE, config.scoring_func)
    if config.force_uniform_routing:
        expert_ids_TK = _uniform_expert_ids(scores_TE, config.num_experts_per_tok)
    else:
        ranking_TE = scores_TE if selection_bias_E is None else scores_TE + selection_bias_E
        expert_ids_TK = choose_experts(ranking_TE, config.num_experts_per_tok)
    weights_TK = scores_TE.gather(-1, expert_ids_TK)
    if config.norm_topk_prob:
        # Sigmoid scores of all chosen experts can underflow to zero together.
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + torch.finfo(torch.float32).tiny)
    return Routing(logits_TE, expert_ids_TK, weights_TK * config.routed_scaling_factor, state_TP)


def _uniform_expert_ids(scores_TE: Tensor, num_experts_per_tok: int) -> Tensor:
    num_tokens, num_experts = scores_TE.shape
    rows_N = torch.arange(num_tokens * num_experts_per_tok, device=scores_TE.device)
    return (rows_N % num_experts).view(num_tokens, num_experts_per_tok)


def tokens_per_expert(expert_ids_TK: Tensor, num_experts: int, token_mask_T: Tensor | None = None) -> Tensor:
    """How many tokens each expert was chosen by: [E] int64; masked tokens (padding) are no load."""
    counted_TK = torch.ones_like(expert_ids_TK, dtype=torch.int64)
    if token_mask_T is not None:
        counted_TK = counted_TK * token_mask_T.unsqueeze(-1)
    # A sum of integers has no order, and unlike `bincount` this does not wait for the device.
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=expert_ids_TK.device)
    return counts_E.scatter_add_(0, expert_ids_TK.reshape(-1), counted_TK.reshape(-1))
