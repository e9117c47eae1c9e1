"""`expert_mlp` on a GPU: Triton kernels around grouped GEMMs."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F.

from torch import Tensor

from pathmoe_kernels.grouped import align, rows_by_rows, rows_by_weights
from pathmoe_kernels.route_rule import Dispatch
from pathmoe_kernels.rows_triton import combine_rows, gather_rows
from pathmoe_kernels.swiglu_triton import swiglu, swiglu_backward


def pad_weights(gate_up_EGD: Tensor, down_EDF: Tensor) -> tuple[Tensor, Tensor]:
    """Weights with zeros up to the alignment of grouped GEMMs, themselves where they are aligned."""
    # Gate and up apart, as each is padded.
    return align(gate_up_EGD.unflatten(1, (2, -1)), 2).flatten(1, 2), align(down_EDF, 2)


def forward(
    x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, dispatch: Dispatch
) -> tuple[Tensor, Tensor]:
    """Output [T, D] and pre-activation [N, 2F] (with the padding of F that grouped GEMMs need)."""
    hidden_size = x_TD.shape[1]
    gate_up_EGD, down_EDF = pad_weights(gate_up_EGD, down_EDF)
    x_ND = gather_rows(align(x_TD, 1), dispatch, weights_TK.shape[1])
    pre_activation_NG = rows_by_weights(x_ND, gate_up_EGD.mT, dispatch.ends_E)
    del x_ND  # gathered again in backward
    activation_NF = swiglu(pre_activation_NG, dispatch.ends_E)
    y_ND = rows_by_weights(activation_NF, down_EDF.mT, dispatch.ends_E)
    y_TD = combine_rows(y_ND, dispatch, weights_TK.contiguous(), weights_TK.shape[1])
    return y_TD[:, :hidden_size].contiguous(), pre_activation_NG


def backward(
    grad_TD: Tensor, x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, dispatch: Dispatch,
    pre_activation_NG: Tensor | None, wants_experts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weights, gate_up and down, the last two empty unless wanted.

    Without a pre-activation it is computed again.
    """
    (num_experts, hidden_size, width), num_choices = down_EDF.shape, weights_TK.shape[1]
    gate_up_EGD, down_EDF = pad_weights(gate_up_EGD, down_EDF)
    if pre_activation_NG is None:
        x_ND = gather_rows(align(x_TD, 1), dispatch, num_choices)
        pre_activation_NG = rows_by_weights(x_ND, gate_up_EGD.mT, dispatch.ends_E)
        del x_ND
    grad_y_ND = gather_rows(align(grad_TD, 1), dispatch, num_choices)
    # The gradient of the unweighted activation: with it, <grad, activation> is that of the routing weight.
    grad_NF = rows_by_weights(grad_y_ND, down_EDF, dispatch.ends_E)
    grad_h_NG, weighted_NF, grad_weights_TK = swiglu_backward(
        pre_activation_NG, grad_NF, dispatch.order_N, weights_TK.contiguous(), dispatch.ends_E
    )
    grad_gate_up_EGD, grad_down_EDF = gate_up_EGD.new_empty(0), down_EDF.new_empty(0)
    if wants_experts:
        grad_down_EDF = rows_by_rows(grad_y_ND, weighted_NF, dispatch.ends_E)[:, :hidden_size, :width].contiguous()
        x_ND = gather_rows(align(x_TD, 1), dispatch, num_choices)
        halves = rows_by_rows(grad_h_NG, x_ND, dispatch.ends_E).unflatten(1, (2, -1))[:, :, :width, :hidden_size]
        grad_gate_up_EGD = halves.reshape(num_experts, 2 * width, hidden_size)
    grad_x_ND = rows_by_weights(grad_h_NG, gate_up_EGD, dispatch.ends_E)
    grad_x_TD = combine_rows(grad_x_ND, dispatch, None, num_choices)
    return grad_x_TD[:, :hidden_size].contiguous(), grad_weights_TK, grad_gate_up_EGD, grad_down_EDF
