"""Triton kernel of the backward of `route`: gradients of the logits and of x, from x and the log-sum-exp."""

# Shapes: T tokens, E experts, K experts per token, D hidden.

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathmoe_kernels.launch import interpreting
from pathmoe_kernels.metadata_triton import expert_block
from pathmoe_kernels.route_forward_triton import ROUTE_OPTIONS, block_hidden, tokens_per_chunk
from pathmoe_kernels.route_rule import RouteRule
from pathmoe_kernels.route_tiles import TINY, logits_tile, sigmoid


@triton.jit
def choice_gradient(
    ids_ptr, weights_ptr, grad_weights_ptr, token, inside, inverse_scaling,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, RENORMALISE: tl.constexpr,
):  # fmt: skip
    """Gradient [BLOCK_T, BLOCK_E] of the scores' logarithms through the weights of the chosen experts.

    w = c s, or w = c s / S over the chosen: s dL/ds is w dw, or w (dw - <dw, w> / c), without the scores themselves.
    """
    expert = tl.arange(0, BLOCK_E)
    row = token.to(tl.int64) * K
    dot = tl.zeros([BLOCK_T], dtype=tl.float32)
    if RENORMALISE:
        for k in range(K):
            dot += tl.load(grad_weights_ptr + row + k, inside, 0.0) * tl.load(weights_ptr + row + k, inside, 0.0)
        dot *= inverse_scaling
    grad_log_scores = tl.zeros([BLOCK_T, BLOCK_E], dtype=tl.float32)
    for k in range(K):
        hit = expert[None, :] == tl.load(ids_ptr + row + k, inside, -1)[:, None]
        weight = tl.load(weights_ptr + row + k, inside, 0.0)
        grad = weight * (tl.load(grad_weights_ptr + row + k, inside, 0.0) - dot)
        grad_log_scores = tl.where(hit, grad[:, None], grad_log_scores)
    return grad_log_scores


@triton.jit
def hidden_gradient(
    grad_logits_ptr, gate_ptr, grad_x_ptr, token, inside, first, hidden_size,
    E: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_H: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Store columns `first` to `first` + BLOCK_H of the gradient of x: that of the logits times the gate."""
    column = first + tl.arange(0, BLOCK_H)
    within = column < hidden_size
    row = token[:, None].to(tl.int64)
    grad_x = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
    for first_expert in range(0, BLOCK_E, 16):
        expert = first_expert + tl.arange(0, 16)
        real = expert < E
        grad_logits = tl.load(grad_logits_ptr + row * E + expert[None, :], inside[:, None] & real[None, :], 0.0)
        gate_ptrs = gate_ptr + expert[:, None] * hidden_size + column[None, :]
        gate = tl.load(gate_ptrs, real[:, None] & within[None, :], 0.0)
        if UPCAST:
            grad_logits = grad_logits.to(tl.float32)
            gate = gate.to(tl.float32)
        grad_x = tl.dot(grad_logits, gate, grad_x, input_precision="tf32x3")
    tl.store(grad_x_ptr + row * hidden_size + column[None, :], grad_x, inside[:, None] & within[None, :])


@triton.jit
def route_backward_kernel(
    x_ptr, gate_ptr, mask_ptr, ids_ptr, weights_ptr, lse_ptr,
    grad_weights_ptr, grad_lse_ptr, grad_probability_ptr, grad_logits_ptr, grad_x_ptr,
    num_tokens, hidden_size, inverse_scaling,
    E: tl.constexpr, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr, SIGMOID: tl.constexpr, RENORMALISE: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr, HAS_GRAD_PROBABILITY: tl.constexpr, FROM_LOGITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk of tokens."""
    expert = tl.arange(0, BLOCK_E)
    real = expert < E
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside = token < num_tokens
    logits = logits_tile(x_ptr, gate_ptr, token, inside, hidden_size, E, BLOCK_T, BLOCK_E, BLOCK_D, FROM_LOGITS, UPCAST)
    lse = tl.load(lse_ptr + token, inside, 0.0)
    # Beyond the last expert logits are minus infinity, and both scores zero.
    scores = sigmoid(logits) if SIGMOID else tl.exp(logits - lse[:, None])
    grad_log_scores = choice_gradient(
        ids_ptr, weights_ptr, grad_weights_ptr, token, inside, inverse_scaling, K, BLOCK_T, BLOCK_E, RENORMALISE
    )
    if HAS_GRAD_PROBABILITY:
        grad = tl.load(grad_probability_ptr + expert, real, 0.0)[None, :]
        counted = inside
        if HAS_MASK:
            counted = inside & (tl.load(mask_ptr + token, inside, 0) != 0)
        probability = scores
        if SIGMOID:
            # q = s / S, so that s dL/ds = q (dq - <dq, q>).
            probability = scores / (tl.sum(scores, axis=1) + TINY)[:, None]
            grad = grad - tl.sum(grad * probability, axis=1)[:, None]
        grad_log_scores += tl.where(counted[:, None], grad * probability, 0.0)
    if SIGMOID:
        grad_logits = grad_log_scores * (1.0 - scores)
    else:
        grad_logits = grad_log_scores - scores * tl.sum(grad_log_scores, axis=1)[:, None]
    if HAS_GRAD_LSE:
        softmax = tl.exp(logits - lse[:, None]) if SIGMOID else scores
        grad_logits += softmax * tl.load(grad_lse_ptr + token, inside, 0.0)[:, None]
    cell = token[:, None].to(tl.int64) * E + expert[None, :]
    tl.store(grad_logits_ptr + cell, grad_logits, inside[:, None] & real[None, :])

    if not FROM_LOGITS:
        # From memory again, a few experts at a time: a whole tile as an operand would not fit into registers.
        tl.debug_barrier()
        for first in range(0, hidden_size, BLOCK_H):
            hidden_gradient(
                grad_logits_ptr, gate_ptr, grad_x_ptr, token, inside, first, hidden_size,
                E, BLOCK_T, BLOCK_E, BLOCK_H, UPCAST,
            )  # fmt: skip


def route_backward(
    x_TD: Tensor, gate_ED: Tensor | None, mask_T: Tensor | None, ids_TK: Tensor, weights_TK: Tensor,
    logsumexp_T: Tensor, grad_weights_TK: Tensor, grad_logsumexp_T: Tensor | None, grad_probability_E: Tensor | None,
    num_experts: int, rule: RouteRule,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients of the logits [T, E] and of x [T, D] (None without a gate), both in x's dtype."""
    grad_logits_TE = x_TD.new_empty(x_TD.shape[0], num_experts)
    grad_x_TD = None if gate_ED is None else torch.empty_like(x_TD)
    block_tokens = tokens_per_chunk(num_experts, gate_ED is not None)
    num_chunks = triton.cdiv(x_TD.shape[0], block_tokens)
    if num_chunks:
        route_backward_kernel[(num_chunks,)](
            x_TD, gate_ED, None if mask_T is None else mask_T.view(torch.uint8), ids_TK, weights_TK, logsumexp_T,
            grad_weights_TK, grad_logsumexp_T, grad_probability_E, grad_logits_TE, grad_x_TD,
            x_TD.shape[0], x_TD.shape[1], rule.inverse_scaling,
            E=num_experts, K=rule.num_experts_per_tok, BLOCK_T=block_tokens, BLOCK_E=expert_block(num_experts),
            BLOCK_D=block_hidden(x_TD, num_experts), BLOCK_H=64, SIGMOID=rule.sigmoid, RENORMALISE=rule.norm_topk_prob,
            HAS_MASK=mask_T is not None, HAS_GRAD_LSE=grad_logsumexp_T is not None,
            HAS_GRAD_PROBABILITY=grad_probability_E is not None, FROM_LOGITS=gate_ED is None, UPCAST=interpreting(),
            **ROUTE_OPTIONS,
        )  # fmt: skip
    return grad_logits_TE, grad_x_TD
