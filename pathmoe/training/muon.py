"""Muon for expert weights: every expert's matrix is orthogonalised on its own, all of them in one batched product."""

# Shapes: E experts, M matrices stacked in the rows of one expert's weight, R rows and C columns of such a matrix,
# N matrices of a batch.

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

_ADJUST_LR_FNS = (None, "original", "match_rms_adamw")


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Push the singular values of each matrix towards one by a quintic Newton-Schulz iteration in bfloat16.

    The singular vectors stay; the singular values land near one, not on it. A zero matrix stays zero.

    Args:
        matrices: [..., R, C], any floating dtype.
        coefficients: (a, b, c) of X <- aX + (bG + cG^2)X with G = XX^T.
        steps: iterations.
        eps: smallest norm that is divided by.

    Returns:
        [..., R, C], bfloat16.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; `torch.optim.Muon` runs the
    same iteration on a single matrix.
    """
    a, b, c = coefficients
    tall = matrices.size(-2) > matrices.size(-1)
    x_NRC = matrices.bfloat16().flatten(end_dim=-3) if matrices.ndim > 2 else matrices.bfloat16()[None]
    if tall:  # the Gram matrix is the smaller of the two possible ones
        x_NRC = x_NRC.mT
    # The Frobenius norm bounds the spectral norm, which the iteration needs to be at most one.
    x_NRC = x_NRC / x_NRC.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return (x_NRC.mT if tall else x_NRC).reshape(matrices.shape)


class ExpertMuon(Optimizer):
    """Muon for weights [E, M*R, C]: `torch.optim.Muon` on each of the E*M matrices [R, C], without a loop over them.

    The arguments are those of `torch.optim.Muon`, and so is the update, slice by slice, up to the rounding of a batched
    against a single bfloat16 product. State per parameter: `momentum_buffer`, of the parameter's shape.

    Args:
        params: parameters or groups; all 3-D.
        num_matrices: M, the matrices stacked in the rows of one expert's weight (2 where gate and up are fused); a
            group may set its own.

    Raises:
        ValueError: a parameter that is not 3-D or whose rows `num_matrices` does not divide; an unknown `adjust_lr_fn`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        num_matrices: int = 1,
    ) -> None:
        if adjust_lr_fn not in _ADJUST_LR_FNS:
            raise ValueError(f"adjust_lr_fn ({adjust_lr_fn}) must be one of {_ADJUST_LR_FNS}; pick one of them")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "num_matrices": num_matrices,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 3 or parameter.size(1) % group["num_matrices"]:
                    raise ValueError(
                        f"num_matrices ({group['num_matrices']}) must divide the rows of a 3-D parameter (shape "
                        f"{tuple(parameter.shape)}); give other parameters to another optimizer"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum_buffer = state["momentum_buffer"]
        momentum_buffer.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum_buffer, group["momentum"]) if group["nesterov"] else momentum_buffer

        matrices_EMRC = update.unflatten(1, (group["num_matrices"], -1))
        update_EMRC = orthogonalize(matrices_EMRC, group["ns_coefficients"], group["ns_steps"], group["eps"])

        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        lr = group["lr"] * _lr_ratio(group["adjust_lr_fn"], *matrices_EMRC.shape[-2:])
        parameter.add_(update_EMRC.flatten(1, 2), alpha=-lr)


def _lr_ratio(adjust_lr_fn: str | None, rows: int, columns: int) -> float:
    """Factor that evens out updates over shapes: Jordan's "original", or that of Liu et al. 2025 (arXiv 2502.16982)."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
