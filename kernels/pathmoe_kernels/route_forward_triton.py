"""Triton kernel of `route`: gate GEMM, scores, top-k, weights, log-sum-exp and histograms, in one launch."""

# Shapes: T tokens, E experts, K experts per token, D hidden, C chunks of BLOCK_T consecutive tokens.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pathmoe_kernels.launch import OPTIONS, interpreting, num_persistent_programs, ticket
from pathmoe_kernels.metadata_triton import CHUNKS_AT_A_TIME, expert_block, is_last_program, scan_chunks, sum_chunks
from pathmoe_kernels.route_rule import Dispatch, Routed, RouteRule
from pathmoe_kernels.route_tiles import LOWEST, TINY, logits_tile, logsumexp_rows, sigmoid

ROUTE_OPTIONS = {**OPTIONS, "num_warps": 8, "maxnreg": 255}
"""All registers that a thread may have: left to itself, ptxas takes fewer and keeps the rest on the stack."""


@triton.jit
def ranking_tile(
    logits, lse, bad, token, bias_ptr,
    E: tl.constexpr, K: tl.constexpr, BLOCK_E: tl.constexpr,
    SIGMOID: tl.constexpr, HAS_BIAS: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    """What the choice goes by [BLOCK_T, BLOCK_E]: finite or plus infinity for experts, minus infinity beyond E."""
    expert = tl.arange(0, BLOCK_E)
    real = expert < E
    if UNIFORM:
        # Token t takes the experts t K, t K + 1, ... modulo E.
        first = (token % E) * K % E
        ranking = -((expert[None, :] - first[:, None] + E) % E).to(tl.float32)
    elif HAS_BIAS:
        scores = sigmoid(logits) if SIGMOID else tl.exp(logits - lse[:, None])
        ranking = scores + tl.load(bias_ptr + expert, real, 0.0)[None, :]
    else:
        # Scores rise with the logits, and tie where the logits do not.
        ranking = logits
    # As `choose_experts` ranks: NaN highest, and minus infinity, which marks what is taken, as the lowest number.
    ranking = tl.where(ranking != ranking, float("inf"), tl.maximum(ranking, LOWEST))
    # A row whose scores hold a NaN takes the first K.
    ranking = tl.where(bad[:, None], 0.0, ranking)
    return tl.where(real[None, :], ranking, float("-inf"))


@triton.jit
def route_forward_kernel(
    x_ptr, gate_ptr, bias_ptr, mask_ptr, weights_ptr, ids_ptr, lse_ptr,
    chunk_starts_ptr, chunk_load_ptr, chunk_probability_ptr, ends_ptr, load_ptr, probability_ptr, ticket_ptr,
    num_tokens, hidden_size, scaling,
    E: tl.constexpr, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, SIGMOID: tl.constexpr, RENORMALISE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, PROBABILITIES: tl.constexpr, UNIFORM: tl.constexpr,
    FROM_LOGITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Route chunks of tokens; the last program to finish scans what all have counted."""
    expert = tl.arange(0, BLOCK_E)
    real = expert < E
    choice = tl.arange(0, BLOCK_K)
    num_chunks = tl.cdiv(num_tokens, BLOCK_T)
    for chunk in range(tl.program_id(0), num_chunks, tl.num_programs(0)):
        token = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
        inside = token < num_tokens
        logits = logits_tile(
            x_ptr, gate_ptr, token, inside, hidden_size, E, BLOCK_T, BLOCK_E, BLOCK_D, FROM_LOGITS, UPCAST
        )
        lse = logsumexp_rows(logits)
        tl.store(lse_ptr + token, lse, inside)
        # Softmax of an infinite row is NaN; a sigmoid is not.
        bad = lse != lse
        if not SIGMOID:
            bad = bad | (tl.abs(lse) == float("inf"))

        # Ahead of the choice, whose loop has no registers to spare.
        counted = inside
        if HAS_MASK:
            counted = inside & (tl.load(mask_ptr + token, inside, 0) != 0)
        if PROBABILITIES:
            if SIGMOID:
                scores = tl.where(real[None, :], sigmoid(logits), 0.0)
                probability = scores / (tl.sum(scores, axis=1) + TINY)[:, None]
            else:
                probability = tl.exp(logits - lse[:, None])
            probability = tl.where(counted[:, None] & real[None, :], probability, 0.0)
            tl.store(chunk_probability_ptr + chunk * E + expert, tl.sum(probability, axis=0), real)

        ranking = ranking_tile(logits, lse, bad, token, bias_ptr, E, K, BLOCK_E, SIGMOID, HAS_BIAS, UNIFORM)
        ids = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.int32)
        chosen_logits = tl.zeros([BLOCK_T, BLOCK_K], dtype=tl.float32)
        # Not `tl.static_range`: registers would grow with K.
        for k in range(K):
            # The lower index wins a tie.
            _, best_id = tl.max(ranking, axis=1, return_indices=True, return_indices_tie_break_left=True)
            hit = expert[None, :] == best_id[:, None]
            best_logit = tl.sum(tl.where(hit, logits, 0.0), axis=1)
            ids = tl.where(choice[None, :] == k, best_id[:, None], ids)
            chosen_logits = tl.where(choice[None, :] == k, best_logit[:, None], chosen_logits)
            ranking = tl.where(hit, float("-inf"), ranking)

        weights = sigmoid(chosen_logits) if SIGMOID else tl.exp(chosen_logits - lse[:, None])
        if RENORMALISE:
            total = tl.sum(tl.where((choice < K)[None, :], weights, 0.0), axis=1)
            weights = weights / (total + TINY)[:, None]
        weights = tl.where(bad[:, None], float("nan"), weights * scaling)
        cell = token[:, None].to(tl.int64) * K + choice[None, :]
        stored = inside[:, None] & (choice < K)[None, :]
        tl.store(weights_ptr + cell, weights, stored)
        tl.store(ids_ptr + cell, ids, stored)

        # As integers: a tile of booleans would go through the stack.
        taken = tl.where(ranking == float("-inf"), inside.to(tl.int32)[:, None], 0)
        tl.store(chunk_starts_ptr + chunk * E + expert, tl.sum(taken, axis=0), real)
        if HAS_MASK:
            load = tl.sum(taken * counted.to(tl.int32)[:, None], axis=0)
            tl.store(chunk_load_ptr + chunk * E + expert, load, real)

    if is_last_program(ticket_ptr):
        if PROBABILITIES:
            probability_sum = sum_chunks(chunk_probability_ptr, num_chunks, E, BLOCK_C, BLOCK_E)
            tl.store(probability_ptr + expert, probability_sum, real)
        load = scan_chunks(chunk_starts_ptr, ends_ptr, num_chunks, E, BLOCK_C, BLOCK_E)
        if HAS_MASK:
            load = sum_chunks(chunk_load_ptr, num_chunks, E, BLOCK_C, BLOCK_E)
        tl.store(load_ptr + expert, load, real)
        tl.store(ticket_ptr, 0)


def tokens_per_chunk(num_experts: int, has_gate: bool) -> int:
    """Tokens that a program routes at a time: as many as leave the logits in registers.

    Half as many where logits are loaded: a tile that is loaded takes more registers than one that is multiplied, and
    no gate has to be read again for each chunk.
    """
    return max(16, min(128 if has_gate else 64, (8192 if has_gate else 4096) // expert_block(num_experts)))


def route_forward(
    x_TD: Tensor,
    gate_ED: Tensor | None,
    bias_E: Tensor | None,
    mask_T: Tensor | None,
    num_experts: int,
    rule: RouteRule,
) -> tuple[Routed, Tensor]:
    """All that `route` returns but the dispatch's order, and where each chunk's rows of each expert start [C, E].

    Args:
        x_TD: [T, D] hidden states, or without a gate the router logits [T, E].
        gate_ED: [E, D] of x's dtype.
        bias_E: [E] fp32 added to scores for the choice.
        mask_T: [T] bool.
        num_experts: E.
        rule: how to choose and weigh.
    """
    device, num_tokens, num_choices = x_TD.device, x_TD.shape[0], rule.num_experts_per_tok
    block_tokens, block_experts = tokens_per_chunk(num_experts, gate_ED is not None), expert_block(num_experts)
    num_chunks = triton.cdiv(num_tokens, block_tokens)

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    weights_TK, ids_TK = empty(num_tokens, num_choices, dtype=torch.float32), empty(num_tokens, num_choices)
    logsumexp_T, load_E, ends_E = empty(num_tokens, dtype=torch.float32), empty(num_experts), empty(num_experts)
    probability_E = empty(num_experts if rule.probability_sum else 0, dtype=torch.float32)
    chunk_starts_CE = empty(num_chunks, num_experts)
    chunk_load_CE = chunk_starts_CE if mask_T is None else torch.empty_like(chunk_starts_CE)
    chunk_probability_CE = empty(num_chunks if rule.probability_sum else 0, num_experts, dtype=torch.float32)
    grid: Any = (num_persistent_programs(num_chunks, device),)
    route_forward_kernel[grid](
        x_TD, gate_ED, bias_E, None if mask_T is None else mask_T.view(torch.uint8), weights_TK, ids_TK, logsumexp_T,
        chunk_starts_CE, chunk_load_CE, chunk_probability_CE, ends_E, load_E, probability_E, ticket(device),
        num_tokens, x_TD.shape[1], rule.routed_scaling_factor,
        E=num_experts, K=num_choices, BLOCK_T=block_tokens, BLOCK_E=block_experts,
        BLOCK_K=triton.next_power_of_2(num_choices), BLOCK_D=block_hidden(x_TD, num_experts), BLOCK_C=CHUNKS_AT_A_TIME,
        SIGMOID=rule.sigmoid, RENORMALISE=rule.norm_topk_prob, HAS_BIAS=bias_E is not None,
        HAS_MASK=mask_T is not None, PROBABILITIES=rule.probability_sum, UNIFORM=rule.uniform,
        FROM_LOGITS=gate_ED is None, UPCAST=interpreting(), **ROUTE_OPTIONS,
    )  # fmt: skip
    dispatch = Dispatch(empty(0), empty(0), ends_E)
    return Routed(weights_TK, ids_TK, logsumexp_T, load_E, probability_E, dispatch), chunk_starts_CE


def block_hidden(x_TD: Tensor, num_experts: int) -> int:
    """Columns of x that are multiplied at a time: 64 bytes of a row, 128 where few experts leave registers for it."""
    return (128 if num_experts <= 16 else 64) // x_TD.element_size()
