"""`route` in plain PyTorch: what a CPU runs, and what the Triton kernels are held against."""

# Shapes: T tokens, E experts, K experts per token, D hidden, N = T*K routed rows.

import torch
from torch import Tensor

from pathmoe_kernels.choose import choose_experts
from pathmoe_kernels.route_rule import Routed, RouteRule
from pathmoe_kernels.sort_reference import sort_reference


def _logits(x_TD: Tensor, gate_ED: Tensor | None) -> Tensor:
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    return x_TD.to(dtype) if gate_ED is None else x_TD.to(dtype) @ gate_ED.to(dtype).T


def _scores(logits_TE: Tensor, logsumexp_T: Tensor, rule: RouteRule) -> Tensor:
    return logits_TE.sigmoid() if rule.sigmoid else (logits_TE - logsumexp_T[:, None]).exp_()


def _total(scores_TE: Tensor) -> Tensor:
    # Sigmoid scores can underflow to zero together.
    return scores_TE.sum(dim=-1, keepdim=True).add_(torch.finfo(torch.float32).tiny)


def _uniform_ranking(logits_TE: Tensor, num_choices: int) -> Tensor:
    num_tokens, num_experts = logits_TE.shape
    first_T1 = torch.arange(num_tokens, device=logits_TE.device).mul_(num_choices)[:, None]
    return -((torch.arange(num_experts, device=logits_TE.device) - first_T1) % num_experts).to(logits_TE.dtype)


def route_forward(
    x_TD: Tensor, gate_ED: Tensor | None, bias_E: Tensor | None, mask_T: Tensor | None, rule: RouteRule
) -> Routed:
    """See `route`; x [T, D] with a gate [E, D], or logits [T, E] without one."""
    logits_TE = _logits(x_TD, gate_ED)
    num_experts = logits_TE.shape[1]
    logsumexp_T = logits_TE.logsumexp(dim=-1)
    scores_TE = _scores(logits_TE, logsumexp_T, rule)
    # Softmax of an infinite row is NaN; a sigmoid is not.
    bad_T = logsumexp_T.isnan() if rule.sigmoid else ~logsumexp_T.isfinite()
    if rule.uniform:
        ranking_TE = _uniform_ranking(logits_TE, rule.num_experts_per_tok)
    else:
        # Without a bias scores rise with the logits, and tie where the logits do not.
        ranking_TE = logits_TE if bias_E is None else scores_TE + bias_E
    ids_TK = choose_experts(ranking_TE.masked_fill(bad_T[:, None], 0.0), rule.num_experts_per_tok)
    weights_TK = scores_TE.gather(-1, ids_TK)
    if rule.norm_topk_prob:
        weights_TK /= _total(weights_TK)
    weights_TK = (weights_TK * rule.routed_scaling_factor).masked_fill_(bad_T[:, None], torch.nan)

    counted_T = slice(None) if mask_T is None else mask_T
    load_E = _count(ids_TK[counted_T], num_experts)
    probability_sum_E = scores_TE.new_empty(0)
    if rule.probability_sum:
        probability_TE = scores_TE / _total(scores_TE) if rule.sigmoid else scores_TE
        probability_sum_E = probability_TE[counted_T].sum(dim=0)
    ids_TK = ids_TK.int()
    dispatch = sort_reference(ids_TK, num_experts)
    return Routed(weights_TK, ids_TK, logsumexp_T, load_E, probability_sum_E, dispatch)


def _count(ids_TK: Tensor, num_experts: int) -> Tensor:
    # A sum of integers has no order, and unlike `bincount` this does not wait for a device.
    counts_E = torch.zeros(num_experts, dtype=torch.int32, device=ids_TK.device)
    ids_N = ids_TK.reshape(-1)
    return counts_E.scatter_add_(0, ids_N, torch.ones_like(ids_N, dtype=torch.int32))


def route_backward(
    x_TD: Tensor, gate_ED: Tensor | None, mask_T: Tensor | None, ids_TK: Tensor, weights_TK: Tensor,
    logsumexp_T: Tensor, grad_weights_TK: Tensor, grad_logsumexp_T: Tensor | None, grad_probability_E: Tensor | None,
    rule: RouteRule,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of the logits [T, E], fp32 at least, and of x [T, D] (None without a gate)."""
    logits_TE = _logits(x_TD, gate_ED)
    scores_TE = _scores(logits_TE, logsumexp_T, rule)
    grad_chosen_TK = grad_weights_TK
    if rule.norm_topk_prob:
        dot_T1 = (grad_weights_TK * weights_TK).sum(dim=-1, keepdim=True)
        grad_chosen_TK = grad_weights_TK - dot_T1 * rule.inverse_scaling
    # Of the scores' logarithms: w = c s, or w = c s / S over the chosen, so that s dL/ds needs no scores. A gradient of
    # the scores themselves, over a sum that has underflowed, would overflow.
    grad_TE = torch.zeros_like(scores_TE).scatter_(-1, ids_TK.long(), weights_TK * grad_chosen_TK)
    if grad_probability_E is not None:
        grad_probability_TE = grad_probability_E.expand_as(scores_TE)
        probability_TE = scores_TE
        if rule.sigmoid:
            # q = s / S, so that s dL/ds = q (dq - <dq, q>).
            probability_TE = scores_TE / _total(scores_TE)
            grad_probability_TE = grad_probability_TE - (probability_TE @ grad_probability_E)[:, None]
        grad_probability_TE = grad_probability_TE * probability_TE
        grad_TE += grad_probability_TE if mask_T is None else grad_probability_TE * mask_T[:, None]
    if rule.sigmoid:
        grad_TE *= 1 - scores_TE
    else:
        grad_TE.addcmul_(scores_TE, grad_TE.sum(dim=-1, keepdim=True), value=-1)
    if grad_logsumexp_T is not None:
        softmax_TE = (logits_TE - logsumexp_T[:, None]).exp_() if rule.sigmoid else scores_TE
        grad_TE.addcmul_(softmax_TE, grad_logsumexp_T[:, None])
    grad_x_TD = None if gate_ED is None else (grad_TE @ gate_ED.to(grad_TE.dtype)).to(x_TD.dtype)
    return grad_TE, grad_x_TD
