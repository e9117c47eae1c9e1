"""Each op of the kernels at a layer's shape, with the bytes that it must move or the FLOPs that it must do."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows, D hidden, F expert width, G = 2F, S square.

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pathmoe.bench.layer import LayerShape
from pathmoe.routing import route_rule
from pathmoe_kernels import Routed, RouteRule, expert_mlp, route, route_logits, sort_by_expert

UNITS = {"copy": ("GB/s", 1e9), "matmul": ("TFLOP/s", 1e12)}
"""Unit of a rate, and bytes or FLOPs in it, by the call that shows what the device reaches."""


class Work(NamedTuple):
    """A call, and what it can't do without."""

    call: Callable[[], object]
    bound: str
    """What takes the time, as a key of `UNITS`: moving bytes as a copy does, or FLOPs as in a matrix product."""
    amount: int
    """Bytes or FLOPs."""


def least_bytes(shape: LayerShape, itemsize: int) -> dict[str, int]:
    """Bytes that each op reads and writes if it touches everything once; `kernels/README.md` derives them.

    `route` and `route_logits` include the sort after them. Router logits that are given, weights and the gradients of
    both are in fp32, indices in int32, and all else takes `itemsize` bytes a number.
    """
    T, D, F, E, K = shape.sizes()
    N, b = T * K, itemsize
    routed = (8 * N + 4 * T) + 12 * N
    # Ids and weights, log-sum-exp, and the gradients of the latter two.
    given = 12 * N + 8 * T
    return {
        "route": (T + E) * D * b + routed,
        "route, backward": 2 * (T + E) * D * b + 2 * T * E * b + given,
        "route_logits": 4 * T * E + routed,
        "route_logits, backward": 8 * T * E + given,
        "sort_by_expert": 16 * N,
        "gather": (T + N) * D * b + 4 * N,
        "swiglu": 3 * N * F * b,
        "swiglu, backward": 6 * N * F * b + 12 * N,
        "combine": (N + T) * D * b + 8 * N,
    }


def expert_flops(shape: LayerShape) -> int:
    """FLOPs of the experts' three matrices in a forward pass; a backward pass does twice as many."""
    T, D, F, _, K = shape.sizes()
    return 6 * T * K * D * F


def ceilings(device: torch.device, dtype: torch.dtype, copied_bytes: int, matmul_size: int) -> dict[str, Work]:
    """What the device reaches: a copy of `copied_bytes` within its memory, and a product of square matrices."""
    source, target = (torch.zeros(copied_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    left_SS, right_SS = (torch.randn(matmul_size, matmul_size, device=device).to(dtype) for _ in range(2))
    return {
        "copy": Work(partial(target.copy_, source), "copy", 2 * copied_bytes),
        "matmul": Work(partial(torch.mm, left_SS, right_SS), "matmul", 2 * matmul_size**3),
    }


def kernel_ops(shape: LayerShape, device: torch.device, dtype: torch.dtype) -> dict[str, Work]:
    """Every op on random hidden states and weights, routed by a random gate."""
    T, D, F, E, K = shape.sizes()

    def random(*sizes: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(sizes, device=device)).to(dtype)

    x_TD, gate_ED, grad_TD = random(T, D), random(E, D, scale=D**-0.5), random(T, D)
    gate_up_EGD, down_EDF = random(E, 2 * F, D, scale=D**-0.5), random(E, D, F, scale=F**-0.5)
    rule = route_rule(shape.config)
    routed = route(x_TD, gate_ED, rule)
    calls: dict[str, Callable[[], object]] = {
        **_routing_calls(x_TD, gate_ED, rule),
        "sort_by_expert": partial(sort_by_expert, routed.expert_ids_TK, E),
        **_row_calls(x_TD, random(T * K, 2 * F), routed),
    }
    moved = least_bytes(shape, dtype.itemsize)
    works = {name: Work(call, "copy", moved[name]) for name, call in calls.items()}
    forward = partial(expert_mlp, x_TD, routed.weights_TK, gate_up_EGD, down_EDF, routed.dispatch)
    leaves = [tensor.detach().requires_grad_() for tensor in (x_TD, routed.weights_TK, gate_up_EGD, down_EDF)]

    def both() -> None:
        x_TD, weights_TK, gate_up_EGD, down_EDF = leaves
        torch.autograd.grad(expert_mlp(x_TD, weights_TK, gate_up_EGD, down_EDF, routed.dispatch), leaves, grad_TD)

    works["expert_mlp"] = Work(forward, "matmul", expert_flops(shape))
    works["expert_mlp, fwd+bwd"] = Work(both, "matmul", 3 * expert_flops(shape))
    return works


def _routing_calls(x_TD: Tensor, gate_ED: Tensor, rule: RouteRule) -> dict[str, Callable[[], object]]:
    """`route` and `route_logits`, forward and backward, with the gradient of a z-loss."""
    logits_TE = (x_TD.float() @ gate_ED.float().T).detach()
    routes: dict[str, tuple[Callable[..., Routed], list[Tensor]]] = {
        "route": (route, [x_TD, gate_ED]),
        "route_logits": (route_logits, [logits_TE]),
    }
    calls: dict[str, Callable[[], object]] = {}
    for name, (op, inputs) in routes.items():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        routed = op(*leaves, rule)
        outputs = [routed.weights_TK, routed.logsumexp_T]
        grads = [torch.randn_like(output) for output in outputs]
        calls[name] = partial(op, *inputs, rule)
        calls[f"{name}, backward"] = partial(torch.autograd.grad, outputs, leaves, grads, retain_graph=True)
    return calls


def _row_calls(x_TD: Tensor, h_NG: Tensor, routed: Routed) -> dict[str, Callable[[], object]]:
    """The kernels around the experts' GEMMs, which `expert_mlp` launches."""
    from pathmoe_kernels.rows_triton import combine_rows, gather_rows
    from pathmoe_kernels.swiglu_triton import swiglu, swiglu_backward

    dispatch, weights_TK = routed.dispatch, routed.weights_TK
    K = weights_TK.shape[1]
    rows_ND, activation_NF = gather_rows(x_TD, dispatch, K), swiglu(h_NG, dispatch.ends_E)
    return {
        "gather": partial(gather_rows, x_TD, dispatch, K),
        "swiglu": partial(swiglu, h_NG, dispatch.ends_E),
        "swiglu, backward": partial(
            swiglu_backward, h_NG, activation_NF, dispatch.order_N, weights_TK, dispatch.ends_E
        ),
        "combine": partial(combine_rows, rows_ND, dispatch, weights_TK, K),
    }
