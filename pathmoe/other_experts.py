"""Experts of transformers that are no plain SwiGLU: small ops around their own gate, activation and norm."""

# Shapes: T tokens, K experts per token, N = T*K routed rows, E experts, D hidden, F expert width, G = 2F, or F where
# there is no gate, I and O the inner and outer width of a linear layer.

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from pathmoe_kernels import Dispatch, combine_rows, dispatch_rows, grouped_linear

SERVED_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
SILU = type(ACT2FN["silu"])


def is_plain_swiglu(experts: Any) -> bool:
    """Whether an experts module of transformers computes what `expert_mlp` does, from weights of its layout."""
    return (
        experts.has_gate
        and experts.is_concatenated
        and not (experts.has_bias or experts.is_transposed or experts.has_post_expert_norm)
        and not _has_own_gate(experts)
        and (isinstance(experts.act_fn, SILU | nn.SiLU) or experts.act_fn is nn.functional.silu)
    )


def _has_own_gate(experts: Any) -> bool:
    # The decorator gives classes without a gate of their own one from where it is defined itself.
    return type(experts)._apply_gate.__module__ != use_experts_implementation.__module__


def refuse_what_no_op_serves(experts: Any) -> None:
    """Raise for weights that are not there, or that are no plain floating point tensors.

    Raises:
        ValueError: with the class, the weights and what is wrong with them.
    """
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    for name in (up, "down_proj", *((f"{up}_bias", "down_proj_bias") if experts.has_bias else ())):
        weight = getattr(experts, name, None)
        if isinstance(weight, Tensor) and weight.dtype in SERVED_DTYPES and not is_traceable_wrapper_subclass(weight):
            continue
        found = f"of {weight.dtype}, a {type(weight).__name__}" if isinstance(weight, Tensor) else "that is no tensor"
        raise ValueError(
            f"experts_implementation (pathmoe) does not serve {type(experts).__name__}, which has a {name} {found}; "
            "use experts_implementation=eager"
        )


def other_experts_forward(experts: Any, hidden_states: Tensor, top_k_weights: Tensor, dispatch: Dispatch) -> Tensor:
    """Weighted sum [T, D] of each token's experts, of any form that transformers' experts interface can declare.

    That is: a gate of their own, or none; any activation; biases; weights that are transposed; gate and up interleaved;
    a norm after each expert. Saved for backward is what autograd saves between the ops, x and y [N, D] included.

    Args:
        experts: module with `gate_up_proj` (without a gate `up_proj`) and `down_proj`, [E, out, in] or [E, in, out].
        hidden_states: [T, D].
        top_k_weights: [T, K].
        dispatch: the routed rows sorted by expert. Rows of no expert add nothing, to no gradient either.
    """
    x_ND = dispatch_rows(hidden_states, dispatch, top_k_weights.shape[1])
    h_NG = _linear(experts, "gate_up_proj" if experts.has_gate else "up_proj", x_ND, dispatch)
    y_ND = _linear(experts, "down_proj", _activate(experts, h_NG), dispatch)
    if experts.has_post_expert_norm:
        y_ND = experts.post_expert_norm(y_ND)
    return combine_rows(y_ND, top_k_weights, dispatch)


def _linear(experts: Any, name: str, rows_NI: Tensor, dispatch: Dispatch) -> Tensor:
    bias_EO = getattr(experts, f"{name}_bias") if experts.has_bias else None
    return grouped_linear(rows_NI, getattr(experts, name), dispatch.ends_E, bias_EO, transposed=experts.is_transposed)


def _activate(experts: Any, h_NG: Tensor) -> Tensor:
    if not experts.has_gate:
        return experts.act_fn(h_NG)
    if experts.is_concatenated or _has_own_gate(experts):
        return experts._apply_gate(h_NG)
    # transformers' default gate takes the two halves, whatever the layout.
    return experts.act_fn(h_NG[:, ::2]) * h_NG[:, 1::2]
