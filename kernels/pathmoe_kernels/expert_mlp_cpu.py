"""`expert_mlp` in plain PyTorch, for a CPU: experts in chunks whose rows stay in cache, in memory that is reused.

Memory fresh from the system costs a page fault for every page, more than an activation costs; so what does not outlive
the call is one chunk long.
"""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, C rows of a chunk, D hidden, F expert width,
# G = 2F (gate, then up).

from typing import NamedTuple

import torch
from torch import Tensor

from pathmoe_kernels.route_rule import Dispatch
from pathmoe_kernels.rows_reference import combine_rows

NUMBERS_PER_CHUNK = 1 << 18
"""Of the widest buffer: a megabyte in fp32, about a core's second-level cache."""


class Chunk(NamedTuple):
    """Consecutive experts that are worked on together."""

    rows: slice
    """Their sorted positions."""
    experts: list[tuple[int, slice, slice]]
    """Each expert that has rows, its sorted positions, and the same counted from the chunk's first."""


def plan_chunks(ends_E: Tensor, max_rows: int) -> list[Chunk]:
    """Chunks of whole experts, of at most `max_rows` rows unless a single expert has more."""
    chunks: list[list[tuple[int, int, int]]] = []
    start = 0
    for e, end in enumerate(ends_E.tolist()):
        if end > start:
            if not chunks or end - chunks[-1][0][1] > max_rows:
                chunks.append([])
            chunks[-1].append((e, start, end))
        start = end
    return [_chunk(experts) for experts in chunks]


def _chunk(experts: list[tuple[int, int, int]]) -> Chunk:
    first, last = experts[0][1], experts[-1][2]
    parts = [(e, slice(start, end), slice(start - first, end - first)) for e, start, end in experts]
    return Chunk(slice(first, last), parts)


def _plan(dispatch: Dispatch, hidden_size: int, width: int) -> tuple[list[Chunk], int]:
    """Chunks, and the rows of the longest."""
    chunks = plan_chunks(dispatch.ends_E, NUMBERS_PER_CHUNK // max(hidden_size, 2 * width, 1))
    return chunks, max((chunk.rows.stop - chunk.rows.start for chunk in chunks), default=0)


def forward(
    x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, dispatch: Dispatch
) -> tuple[Tensor, Tensor]:
    """Output [T, D] and pre-activation [N, 2F]."""
    (_, hidden_size, width), num_choices = down_EDF.shape, weights_TK.shape[1]
    chunks, most = _plan(dispatch, hidden_size, width)
    tokens_N = dispatch.order_N // num_choices
    x_CD, activation_CF = x_TD.new_empty(most, hidden_size), x_TD.new_empty(most, width)
    pre_activation_NG, y_ND = x_TD.new_empty(len(tokens_N), 2 * width), x_TD.new_empty(len(tokens_N), hidden_size)
    gate_up_GD, down_DF = gate_up_EGD.unbind(), down_EDF.unbind()
    for rows, experts in chunks:
        num_rows = rows.stop - rows.start
        torch.index_select(x_TD, 0, tokens_N[rows], out=x_CD[:num_rows])
        for e, its_rows, in_chunk in experts:
            torch.mm(x_CD[in_chunk], gate_up_GD[e].T, out=pre_activation_NG[its_rows])
        gate_CF, up_CF = pre_activation_NG[rows].chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate_CF, out=activation_CF[:num_rows]).mul_(up_CF)
        for e, its_rows, in_chunk in experts:
            torch.mm(activation_CF[in_chunk], down_DF[e].T, out=y_ND[its_rows])
    return combine_rows(y_ND, dispatch, weights_TK, num_choices), pre_activation_NG


def backward(
    grad_TD: Tensor, x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, dispatch: Dispatch,
    pre_activation_NG: Tensor | None, wants_experts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weights, gate_up and down, the last two empty unless wanted.

    Without a pre-activation it is computed again.
    """
    (_, hidden_size, width), num_choices = down_EDF.shape, weights_TK.shape[1]
    chunks, most = _plan(dispatch, hidden_size, width)
    tokens_N = dispatch.order_N // num_choices
    weights_N1 = weights_TK.reshape(-1).index_select(0, dispatch.order_N)[:, None]
    x_CD, grad_y_CD = x_TD.new_empty(most, hidden_size), x_TD.new_empty(most, hidden_size)
    h_CG, grad_h_CG = x_TD.new_empty(most, 2 * width), x_TD.new_empty(most, 2 * width)
    activation_CF, grad_CF = x_TD.new_empty(most, width), x_TD.new_empty(most, width)
    grad_x_ND, grad_weights_N = x_TD.new_empty(len(tokens_N), hidden_size), weights_TK.new_zeros(len(tokens_N))
    product_CF = x_TD.new_empty(most, width, dtype=torch.promote_types(x_TD.dtype, torch.float32))
    grad_gate_up_EGD, grad_down_EDF = gate_up_EGD.new_empty(0), down_EDF.new_empty(0)
    if wants_experts:
        grad_gate_up_EGD, grad_down_EDF = gate_up_EGD.new_empty(gate_up_EGD.shape), down_EDF.new_empty(down_EDF.shape)
        _zero_without_rows(grad_gate_up_EGD, grad_down_EDF, chunks)
    gate_up_GD, down_DF = gate_up_EGD.unbind(), down_EDF.unbind()
    for rows, experts in chunks:
        num_rows = rows.stop - rows.start
        torch.index_select(x_TD, 0, tokens_N[rows], out=x_CD[:num_rows])
        torch.index_select(grad_TD, 0, tokens_N[rows], out=grad_y_CD[:num_rows])
        for e, _, in_chunk in experts:
            if pre_activation_NG is None:
                torch.mm(x_CD[in_chunk], gate_up_GD[e].T, out=h_CG[in_chunk])
            torch.mm(grad_y_CD[in_chunk], down_DF[e], out=grad_CF[in_chunk])
        grad_weights_N[rows] = _activation_backward(
            h_CG[:num_rows] if pre_activation_NG is None else pre_activation_NG[rows],
            grad_CF[:num_rows], weights_N1[rows].to(x_TD.dtype),
            activation_CF[:num_rows], grad_h_CG[:num_rows], product_CF[:num_rows],
        )  # fmt: skip
        for e, its_rows, in_chunk in experts:
            if wants_experts:
                torch.mm(grad_y_CD[in_chunk].T, activation_CF[in_chunk], out=grad_down_EDF[e])
                torch.mm(grad_h_CG[in_chunk].T, x_CD[in_chunk], out=grad_gate_up_EGD[e])
            torch.mm(grad_h_CG[in_chunk], gate_up_GD[e], out=grad_x_ND[its_rows])
    grad_x_TD = combine_rows(grad_x_ND, dispatch, None, num_choices)
    grad_weights_TK = grad_weights_N.index_select(0, dispatch.position_N).view_as(weights_TK)
    return grad_x_TD, grad_weights_TK, grad_gate_up_EGD, grad_down_EDF


def _zero_without_rows(grad_gate_up_EGD: Tensor, grad_down_EDF: Tensor, chunks: list[Chunk]) -> None:
    with_rows = {e for chunk in chunks for e, _, _ in chunk.experts}
    for e in set(range(len(grad_down_EDF))) - with_rows:
        grad_gate_up_EGD[e].zero_()
        grad_down_EDF[e].zero_()


def _activation_backward(
    pre_activation_CG: Tensor, grad_CF: Tensor, weights_C1: Tensor,
    activation_CF: Tensor, grad_h_CG: Tensor, product_CF: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient [C] of the routing weights; writes the weighted activation and the gradient of the pre-activation.

    Args:
        pre_activation_CG: [C, 2F], gate then up.
        grad_CF: [C, F] gradient of the unweighted activation; overwritten.
        weights_C1: [C, 1] routing weights.
        activation_CF: [C, F] to write the activation times its weight to.
        grad_h_CG: [C, 2F] to write the gradient of the pre-activation to.
        product_CF: [C, F], fp32 at least, to write what is used up here to.
    """
    (gate_CF, up_CF), (grad_gate_CF, grad_up_CF) = pre_activation_CG.chunk(2, dim=-1), grad_h_CG.chunk(2, dim=-1)
    # An exponential costs as much as several passes, so one is shared: silu(g) = g s and silu'(g) = s + s (g - g s).
    slope_CF, silu_CF = torch.sigmoid(gate_CF, out=grad_gate_CF), grad_up_CF
    torch.mul(gate_CF, slope_CF, out=silu_CF)
    torch.sub(gate_CF, silu_CF, out=product_CF)
    slope_CF.addcmul_(slope_CF, product_CF)
    torch.mul(silu_CF, up_CF, out=activation_CF)
    # In half precision a product of two numbers can overflow where the sum of all does not.
    torch.mul(grad_CF.to(product_CF.dtype), activation_CF, out=product_CF)
    grad_weights_C = product_CF.sum(dim=-1)
    activation_CF.mul_(weights_C1)
    grad_CF.mul_(weights_C1)
    grad_up_CF.mul_(grad_CF)
    grad_gate_CF.mul_(grad_CF.mul_(up_CF))
    return grad_weights_C
