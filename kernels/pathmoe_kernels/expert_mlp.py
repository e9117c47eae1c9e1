"""All experts' SwiGLU over the tokens sent to them: gather, up, activation, down, weighted combine."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, R those of one expert, D hidden,
# F expert width, G = 2F (gate, then up).

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pathmoe_kernels.sort import sort_by_expert


def expert_mlp(
    x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Sum over each token's experts of its weight times the expert's SwiGLU output.

    y_t = sum_k w_tk down_e (silu(gate_e x_t) * (up_e x_t)) with e = id_tk. Under autocast the GEMMs run in the autocast
    dtype (custom ops and grouped GEMMs do not see it by themselves); the combine is in fp32, or fp64 for such inputs.

    Saved for backward: x, the pre-activation [N, 2F], the routing and its sorted order. The gradient of a routing
    weight is `<dy down_e, silu(gate) * up>`, so that no [N, D] tensor is kept.

    Args:
        x_TD: [T, D] floating point, of the weights' dtype unless under autocast.
        expert_ids_TK: [T, K] integer, distinct within a row.
        weights_TK: [T, K] floating point.
        gate_up_EGD: [E, 2F, D], rows of the gate first, then those of up.
        down_EDF: [E, D, F].

    Returns:
        [T, D] in the dtype of the GEMMs.
    """
    device_type = x_TD.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        x_TD, gate_up_EGD, down_EDF = x_TD.to(dtype), gate_up_EGD.to(dtype), down_EDF.to(dtype)
    order_N, ends_E = sort_by_expert(expert_ids_TK, gate_up_EGD.shape[0])
    y_TD, _ = _expert_mlp_op(x_TD, weights_TK, gate_up_EGD, down_EDF, order_N, ends_E)
    return y_TD


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _swiglu(pre_activation_NG: Tensor) -> Tensor:
    gate_NF, up_NF = pre_activation_NG.chunk(2, dim=-1)
    return F.silu(gate_NF).mul_(up_NF)


def _swiglu_backward(pre_activation_NG: Tensor, grad_NF: Tensor) -> Tensor:
    gate_NF, up_NF = pre_activation_NG.chunk(2, dim=-1)
    sigmoid_NF = torch.sigmoid(gate_NF)
    silu_NF = gate_NF * sigmoid_NF
    # d silu(g) = sigmoid(g) + silu(g) (1 - sigmoid(g))
    slope_NF = sigmoid_NF + silu_NF * (1 - sigmoid_NF)
    return torch.cat((grad_NF * up_NF * slope_NF, grad_NF * silu_NF), dim=-1)


def _expert_rows(ends_E: Tensor) -> list[tuple[int, slice]]:
    """Experts that have rows, with their slice of the sorted rows."""
    ends = ends_E.tolist()
    return [(e, slice(start, end)) for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False)) if end > start]


@torch.library.custom_op("pathmoe::expert_mlp", mutates_args=())
def _expert_mlp_op(
    x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, order_N: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    tokens_N = order_N // weights_TK.shape[1]
    sum_dtype = _sum_dtype(x_TD.dtype)
    weights_N1 = weights_TK.reshape(-1)[order_N].to(sum_dtype).unsqueeze(-1)
    pre_activation_NG = x_TD.new_empty(order_N.shape[0], gate_up_EGD.shape[1])
    y_TD = torch.zeros(x_TD.shape, dtype=sum_dtype, device=x_TD.device)
    # One expert at a time keeps its rows in cache, and each token at most once in an index_add, which is then exact
    # in order: bit-identical from run to run.
    for e, rows in _expert_rows(ends_E):
        h_RG = torch.mm(x_TD.index_select(0, tokens_N[rows]), gate_up_EGD[e].T, out=pre_activation_NG[rows])
        y_RD = torch.mm(_swiglu(h_RG), down_EDF[e].T).to(sum_dtype)
        y_TD.index_add_(0, tokens_N[rows], y_RD.mul_(weights_N1[rows]))
    return y_TD.to(x_TD.dtype), pre_activation_NG


@_expert_mlp_op.register_fake
def _expert_mlp_fake(
    x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, order_N: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_TD), x_TD.new_empty(order_N.shape[0], gate_up_EGD.shape[1])


@torch.library.custom_op("pathmoe::expert_mlp_backward", mutates_args=())
def _expert_mlp_backward_op(
    grad_TD: Tensor, x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, order_N: Tensor,
    ends_E: Tensor, pre_activation_NG: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tokens_N = order_N // weights_TK.shape[1]
    sum_dtype = _sum_dtype(x_TD.dtype)
    weights_N1 = weights_TK.reshape(-1)[order_N].to(x_TD.dtype).unsqueeze(-1)
    grad_x_TD = torch.zeros(x_TD.shape, dtype=sum_dtype, device=x_TD.device)
    grad_weights_N = weights_TK.new_zeros(weights_TK.numel())
    grad_gate_up_EGD, grad_down_EDF = torch.zeros_like(gate_up_EGD), torch.zeros_like(down_EDF)
    for e, rows in _expert_rows(ends_E):
        tokens_R = tokens_N[rows]
        grad_y_RD = grad_TD.index_select(0, tokens_R)
        activation_RF = _swiglu(pre_activation_NG[rows])
        unweighted_RF = torch.mm(grad_y_RD, down_EDF[e])
        grad_weights_N[order_N[rows]] = (unweighted_RF.to(sum_dtype) * activation_RF).sum(-1).to(weights_TK.dtype)
        torch.mm(grad_y_RD.T, activation_RF.mul_(weights_N1[rows]), out=grad_down_EDF[e])
        grad_h_RG = _swiglu_backward(pre_activation_NG[rows], unweighted_RF.mul_(weights_N1[rows]))
        torch.mm(grad_h_RG.T, x_TD.index_select(0, tokens_R), out=grad_gate_up_EGD[e])
        grad_x_TD.index_add_(0, tokens_R, torch.mm(grad_h_RG, gate_up_EGD[e]).to(sum_dtype))
    return grad_x_TD.to(x_TD.dtype), grad_weights_N.view_as(weights_TK), grad_gate_up_EGD, grad_down_EDF


@_expert_mlp_backward_op.register_fake
def _expert_mlp_backward_fake(
    grad_TD: Tensor, x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, order_N: Tensor,
    ends_E: Tensor, pre_activation_NG: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        torch.empty_like(x_TD),
        torch.empty_like(weights_TK),
        torch.empty_like(gate_up_EGD),
        torch.empty_like(down_EDF),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    # Otherwise autograd makes zeros [N, 2F] for the gradient of the pre-activation, which nobody else sees.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_TD: Tensor | None, _grad_pre_activation: None) -> tuple[Tensor | None, ...]:
    if grad_TD is None:
        return (None,) * 6
    return (*_expert_mlp_backward_op(grad_TD.contiguous(), *ctx.saved_tensors), None, None)


_expert_mlp_op.register_autograd(_backward, setup_context=_setup_context)
