"""From hidden states, or router logits, to experts, weights and the rows sorted by expert: one op, two launches."""

# Shapes: T tokens, E experts, K experts per token, D hidden, N = T*K routed rows, C chunks of tokens.

from typing import Any

import torch
from torch import Tensor

from pathmoe_kernels import route_reference
from pathmoe_kernels.device import device_op, runs_triton
from pathmoe_kernels.route_rule import MAX_ROWS, Dispatch, Routed, RouteRule

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of `Routed`, those of its dispatch last: an op returns no nested tuples."""


def route(
    x_TD: Tensor,
    gate_ED: Tensor,
    rule: RouteRule,
    *,
    selection_bias_E: Tensor | None = None,
    token_mask_T: Tensor | None = None,
) -> Routed:
    """Route tokens by the logits x W^T, which are in fp32 whatever the autocast and the half precision of x and W.

    Scores are the softmax or the sigmoid of the logits. The K experts of highest score, plus selection bias where
    there is one (Wang et al. 2024, arXiv 2408.15664), are chosen, the lower index winning a tie; their weights are
    their scores without the bias, scaled to sum to one if the rule says so, times the scaling factor. A row whose
    scores hold a NaN goes to experts 0 .. K - 1 with NaN weights, so that nothing is routed silently or waited for.

    Differentiable in x and the gate through weights, log-sum-exp and probability sum. Saved for backward: x and O(N).

    Args:
        x_TD: [T, D] bf16, fp16, fp32, or fp64, which is routed in fp64.
        gate_ED: [E, D] in x's dtype; another one is cast to the wider of both.
        rule: how to choose and weigh.
        selection_bias_E: [E] fp32 added to the scores for the choice.
        token_mask_T: [T] bool, False for padding, which counts neither as load nor in the probability sum, but is
            routed.

    Raises:
        ValueError: K above E or below 1, more than 2^26 routed rows, a mask that is not bool [T], or a bias that is
            not [E].
    """
    if x_TD.dtype != gate_ED.dtype:
        dtype = torch.promote_types(x_TD.dtype, gate_ED.dtype)
        x_TD, gate_ED = x_TD.to(dtype), gate_ED.to(dtype)
    return _route(x_TD, gate_ED, rule, selection_bias_E, token_mask_T)


def route_logits(
    logits_TE: Tensor, rule: RouteRule, *, selection_bias_E: Tensor | None = None, token_mask_T: Tensor | None = None
) -> Routed:
    """As `route`, from router logits [T, E] of any formula; differentiable in them."""
    return _route(logits_TE, None, rule, selection_bias_E, token_mask_T)


def _route(
    x_TD: Tensor, gate_ED: Tensor | None, rule: RouteRule, bias_E: Tensor | None, mask_T: Tensor | None
) -> Routed:
    num_experts = x_TD.shape[1] if gate_ED is None else gate_ED.shape[0]
    num_tokens = x_TD.shape[0]
    if rule.num_experts_per_tok > num_experts:
        raise ValueError(
            f"num_experts_per_tok ({rule.num_experts_per_tok}) must be at most the number of experts ({num_experts}); "
            "lower it"
        )
    if rule.num_experts_per_tok < 1:
        raise ValueError(f"num_experts_per_tok ({rule.num_experts_per_tok}) must be at least 1; raise it")
    if num_tokens * rule.num_experts_per_tok > MAX_ROWS:
        raise ValueError(f"tokens ({num_tokens}) times num_experts_per_tok must be at most 2^26; split the batch")
    if mask_T is not None and (mask_T.dtype != torch.bool or mask_T.shape != (num_tokens,)):
        found = f"{mask_T.dtype} {list(mask_T.shape)}"
        raise ValueError(f"token_mask_T ({found}) must be torch.bool [{num_tokens}]; flatten it, and compare with 0")
    if bias_E is not None and bias_E.shape != (num_experts,):
        raise ValueError(f"selection_bias_E ({list(bias_E.shape)}) must be [{num_experts}], one for each expert")
    weights_TK, ids_TK, logsumexp_T, load_E, probability_sum_E, *dispatch = _route_op(
        x_TD, gate_ED, bias_E, mask_T, *rule
    )
    return Routed(weights_TK, ids_TK, logsumexp_T, load_E, probability_sum_E, Dispatch(*dispatch))


def _rows(tensor: Tensor | None) -> Tensor | None:
    """Row by row in memory, as kernels read it."""
    return None if tensor is None else tensor.contiguous()


def _outputs(routed: Routed) -> Outputs:
    weights_TK, ids_TK, logsumexp_T, load_E, probability_sum_E, (order_N, position_N, ends_E) = routed
    return weights_TK, ids_TK, logsumexp_T, load_E, probability_sum_E, order_N, position_N, ends_E


@device_op("pathmoe::route")
def _route_op(
    x_TD: Tensor, gate_ED: Tensor | None, bias_E: Tensor | None, mask_T: Tensor | None, num_experts_per_tok: int,
    sigmoid: bool, norm_topk_prob: bool, routed_scaling_factor: float, probability_sum: bool, uniform: bool,
) -> Outputs:  # fmt: skip
    rule = RouteRule(num_experts_per_tok, sigmoid, norm_topk_prob, routed_scaling_factor, probability_sum, uniform)
    if not runs_triton(x_TD):
        # Autocast reaches inside a custom op, and would run the GEMM in half precision.
        with torch.autocast(x_TD.device.type, enabled=False):
            return _outputs(route_reference.route_forward(x_TD, gate_ED, bias_E, mask_T, rule))
    from pathmoe_kernels.metadata_triton import place_rows
    from pathmoe_kernels.route_forward_triton import route_forward, tokens_per_chunk

    x_TD, gate_ED, bias_E, mask_T = x_TD.contiguous(), _rows(gate_ED), _rows(bias_E), _rows(mask_T)
    num_experts = x_TD.shape[1] if gate_ED is None else gate_ED.shape[0]
    routed, chunk_starts_CE = route_forward(x_TD, gate_ED, bias_E, mask_T, num_experts, rule)
    rows_per_chunk = tokens_per_chunk(num_experts, gate_ED is not None) * num_experts_per_tok
    ids_N, ends_E = routed.expert_ids_TK.view(-1), routed.dispatch.ends_E
    order_N, position_N = place_rows(ids_N, chunk_starts_CE, ends_E, rows_per_chunk)
    return _outputs(routed._replace(dispatch=Dispatch(order_N, position_N, ends_E)))


@_route_op.register_fake
def _route_fake(
    x_TD: Tensor, gate_ED: Tensor | None, bias_E: Tensor | None, mask_T: Tensor | None, num_experts_per_tok: int,
    sigmoid: bool, norm_topk_prob: bool, routed_scaling_factor: float, probability_sum: bool, uniform: bool,
) -> Outputs:  # fmt: skip
    num_tokens, num_experts = x_TD.shape[0], x_TD.shape[1] if gate_ED is None else gate_ED.shape[0]
    dtype = torch.promote_types(x_TD.dtype, torch.float32)

    def integers(*shape: int) -> Tensor:
        return x_TD.new_empty(shape, dtype=torch.int32)

    num_rows = num_tokens * num_experts_per_tok
    return (
        x_TD.new_empty(num_tokens, num_experts_per_tok, dtype=dtype),
        integers(num_tokens, num_experts_per_tok),
        x_TD.new_empty(num_tokens, dtype=dtype),
        integers(num_experts),
        x_TD.new_empty(num_experts if probability_sum else 0, dtype=dtype),
        integers(num_rows),
        integers(num_rows),
        integers(num_experts),
    )


@device_op("pathmoe::route_backward")
def _route_backward_op(
    x_TD: Tensor, gate_ED: Tensor | None, mask_T: Tensor | None, ids_TK: Tensor, weights_TK: Tensor,
    logsumexp_T: Tensor, grad_weights_TK: Tensor, grad_logsumexp_T: Tensor | None, grad_probability_E: Tensor | None,
    sigmoid: bool, norm_topk_prob: bool, routed_scaling_factor: float, wants_gate: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rule = RouteRule(ids_TK.shape[1], sigmoid, norm_topk_prob, routed_scaling_factor)
    saved = (_rows(mask_T), ids_TK, weights_TK, logsumexp_T, grad_weights_TK, grad_logsumexp_T, grad_probability_E)
    with torch.autocast(x_TD.device.type, enabled=False):
        if runs_triton(x_TD):
            from pathmoe_kernels.route_backward_triton import route_backward

            x_TD, gate_ED = x_TD.contiguous(), _rows(gate_ED)
            num_experts = x_TD.shape[1] if gate_ED is None else gate_ED.shape[0]
            grad_logits_TE, grad_x_TD = route_backward(x_TD, gate_ED, *saved, num_experts, rule)
        else:
            grad_logits_TE, grad_x_TD = route_reference.route_backward(x_TD, gate_ED, *saved, rule)
        if gate_ED is None:
            return grad_logits_TE.to(x_TD.dtype).contiguous(), x_TD.new_empty(0)
        assert grad_x_TD is not None
        if not wants_gate:
            return grad_x_TD, gate_ED.new_empty(0)
        grad_gate_ED = (grad_logits_TE.T @ x_TD.to(grad_logits_TE.dtype)).to(gate_ED.dtype)
        return grad_x_TD, grad_gate_ED


@_route_backward_op.register_fake
def _route_backward_fake(
    x_TD: Tensor, gate_ED: Tensor | None, mask_T: Tensor | None, ids_TK: Tensor, weights_TK: Tensor,
    logsumexp_T: Tensor, grad_weights_TK: Tensor, grad_logsumexp_T: Tensor | None, grad_probability_E: Tensor | None,
    sigmoid: bool, norm_topk_prob: bool, routed_scaling_factor: float, wants_gate: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # Row by row in memory, whatever the strides of the inputs.
    grad_x_TD = x_TD.new_empty(x_TD.shape)
    return grad_x_TD, x_TD.new_empty(0 if gate_ED is None or not wants_gate else gate_ED.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_TD, gate_ED, _, mask_T, _, *ctx.formula, _, _ = inputs
    weights_TK, ids_TK, logsumexp_T, *_ = output
    ctx.save_for_backward(x_TD, gate_ED, mask_T, ids_TK, weights_TK, logsumexp_T)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_weights_TK: Tensor | None, _ids: None, grad_logsumexp_T: Tensor | None, _load: None,
    grad_probability_E: Tensor | None, *_dispatch: None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    x_TD, gate_ED, mask_T, ids_TK, weights_TK, logsumexp_T = ctx.saved_tensors
    if grad_probability_E is not None and not grad_probability_E.numel():
        # A compiled graph makes zeros for outputs without a gradient, also for the sum that was not asked for.
        grad_probability_E = None
    grads = [grad_weights_TK, grad_logsumexp_T, grad_probability_E]
    grad_x = grad_gate = None
    wants_gate = ctx.needs_input_grad[1]
    if any(grad is not None for grad in grads):
        grads = [_rows(grad) for grad in grads]
        if grads[0] is None:
            grads[0] = torch.zeros_like(weights_TK)
        grad_x, grad_gate = _route_backward_op(
            x_TD, gate_ED, mask_T, ids_TK, weights_TK, logsumexp_T, *grads, *ctx.formula, wants_gate
        )
    return grad_x, grad_gate if wants_gate else None, *[None] * 8


_route_op.register_autograd(_backward, setup_context=_setup_context)
