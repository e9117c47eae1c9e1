"""All experts' SwiGLU over the tokens sent to them: gather, up, activation, down, weighted combine."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width,
# G = 2F (gate, then up).

from typing import Any

from torch import Tensor

from pathmoe_kernels import expert_mlp_cpu
from pathmoe_kernels.autocast import to_autocast
from pathmoe_kernels.device import device_op, runs_triton
from pathmoe_kernels.route_rule import Dispatch


def expert_mlp(
    x_TD: Tensor,
    weights_TK: Tensor,
    gate_up_EGD: Tensor,
    down_EDF: Tensor,
    dispatch: Dispatch,
    *,
    recompute: bool = False,
) -> Tensor:
    """Sum over each token's experts of its weight times the expert's SwiGLU output.

    y_t = sum_k w_tk down_e (silu(gate_e x_t) * (up_e x_t)) with e = id_tk. Under autocast the GEMMs run in the autocast
    dtype (custom ops and grouped GEMMs do not see it by themselves); the combine is in fp32, or fp64 for such inputs.

    Saved for backward: x, the pre-activation [N, 2F], the routing and its sorted order. The gradient of a routing
    weight is `<dy down_e, silu(gate) * up>`, so that no [N, D] tensor is kept (SonicMoE, arXiv 2512.14080).
    Under autocast the weights in its dtype are kept too, which nobody else holds.

    Args:
        x_TD: [T, D] floating point, of the weights' dtype unless under autocast.
        weights_TK: [T, K] floating point.
        gate_up_EGD: [E, 2F, D], rows of the gate first, then those of up.
        down_EDF: [E, D, F].
        dispatch: the routed rows sorted by expert, from `route` or `sort_by_expert`. Rows of no expert add nothing.
        recompute: compute the pre-activation again in backward instead of keeping it.

    Returns:
        [T, D] in the dtype of the GEMMs.

    Raises:
        ValueError: shapes that do not fit each other, or x of another dtype than the weights.
    """
    x_TD, gate_up_EGD, down_EDF = to_autocast(x_TD), to_autocast(gate_up_EGD), to_autocast(down_EDF)
    _check(x_TD, weights_TK, gate_up_EGD, down_EDF, dispatch)
    return _expert_mlp_op(x_TD, weights_TK, gate_up_EGD, down_EDF, *dispatch, recompute)[0]


def _check(x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, dispatch: Dispatch) -> None:
    (num_experts, hidden_size, width), num_tokens = down_EDF.shape, x_TD.shape[0]
    expected = {
        "x_TD": (x_TD, (num_tokens, hidden_size)),
        "weights_TK": (weights_TK, (num_tokens, weights_TK.shape[-1])),
        "gate_up_EGD": (gate_up_EGD, (num_experts, 2 * width, hidden_size)),
        "dispatch.order_N": (dispatch.order_N, (weights_TK.numel(),)),
        "dispatch.ends_E": (dispatch.ends_E, (num_experts,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} ({list(tensor.shape)}) must be {list(shape)}, as the other shapes have it")
    if {x_TD.dtype, gate_up_EGD.dtype} != {down_EDF.dtype}:
        dtypes = f"{x_TD.dtype}, {gate_up_EGD.dtype}, {down_EDF.dtype}"
        raise ValueError(f"x_TD, gate_up_EGD and down_EDF ({dtypes}) must be of one dtype; cast them")


def _implementation(tensor: Tensor) -> Any:
    if not runs_triton(tensor):
        return expert_mlp_cpu
    from pathmoe_kernels import expert_mlp_triton

    return expert_mlp_triton


@device_op("pathmoe::expert_mlp")
def _expert_mlp_op(
    x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, order_N: Tensor, position_N: Tensor,
    ends_E: Tensor, recompute: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y_TD, pre_activation_NG = _implementation(x_TD).forward(
        x_TD, weights_TK, gate_up_EGD, down_EDF, Dispatch(order_N, position_N, ends_E)
    )
    return y_TD, x_TD.new_empty(0) if recompute else pre_activation_NG


@_expert_mlp_op.register_fake
def _expert_mlp_fake(
    x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, order_N: Tensor, position_N: Tensor,
    ends_E: Tensor, recompute: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    width = gate_up_EGD.shape[1]
    if runs_triton(x_TD):
        from pathmoe_kernels.grouped import padding

        width += 2 * padding(width // 2, x_TD.dtype)
    shape = (0,) if recompute else (order_N.shape[0], width)
    return x_TD.new_empty(x_TD.shape), x_TD.new_empty(shape)


@device_op("pathmoe::expert_mlp_backward")
def _expert_mlp_backward_op(
    grad_TD: Tensor, x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, order_N: Tensor,
    position_N: Tensor, ends_E: Tensor, pre_activation_NG: Tensor | None, wants_experts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dispatch = Dispatch(order_N, position_N, ends_E)
    return _implementation(x_TD).backward(
        grad_TD, x_TD, weights_TK, gate_up_EGD, down_EDF, dispatch, pre_activation_NG, wants_experts
    )


@_expert_mlp_backward_op.register_fake
def _expert_mlp_backward_fake(
    grad_TD: Tensor, x_TD: Tensor, weights_TK: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, order_N: Tensor,
    position_N: Tensor, ends_E: Tensor, pre_activation_NG: Tensor | None, wants_experts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x, grad_weights = x_TD.new_empty(x_TD.shape), weights_TK.new_empty(weights_TK.shape)
    if not wants_experts:
        return grad_x, grad_weights, gate_up_EGD.new_empty(0), down_EDF.new_empty(0)
    return grad_x, grad_weights, gate_up_EGD.new_empty(gate_up_EGD.shape), down_EDF.new_empty(down_EDF.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.recompute = inputs
    ctx.save_for_backward(*tensors, None if ctx.recompute else output[1])
    # Otherwise autograd makes zeros [N, 2F] for the gradient of the pre-activation, which nobody else sees.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_TD: Tensor | None, _grad_pre_activation: None) -> tuple[Tensor | None, ...]:
    if grad_TD is None:
        return (None,) * 8
    wants_experts = any(ctx.needs_input_grad[2:4])
    grad_x_TD, grad_weights_TK, *grad_experts = _expert_mlp_backward_op(
        grad_TD.contiguous(), *ctx.saved_tensors, wants_experts
    )
    return grad_x_TD, grad_weights_TK, *(grad_experts if wants_experts else (None, None)), None, None, None, None


_expert_mlp_op.register_autograd(_backward, setup_context=_setup_context)
