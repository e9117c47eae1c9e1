"""What the experts' load looks like, per layer, as numbers to log."""

# Shapes: E experts, L deciding layers.

import math

import torch
from torch import Tensor


def load_metrics(load_LE: Tensor, layers: tuple[int, ...]) -> dict[str, float]:
    """Balance figures of each deciding layer and their mean over layers.

    `max_over_mean` is the busiest expert's load over the mean load (1 when balanced, E when collapsed),
    `dead_experts` counts experts without a token, `entropy_bits` is the entropy of the load's distribution
    (log2 E when balanced).

    Args:
        load_LE: [L, E] tokens per expert.
        layers: index of each row's MoE layer, for the names.
    """
    load_LE = load_LE.cpu().double()  # in one transfer
    share_LE = load_LE / load_LE.sum(dim=-1, keepdim=True).clamp(min=1)
    figures = {
        "max_over_mean": share_LE.amax(dim=-1) * load_LE.shape[-1],
        "dead_experts": (load_LE == 0).sum(dim=-1).double(),
        "entropy_bits": -torch.special.xlogy(share_LE, share_LE).sum(dim=-1) / math.log(2),
    }
    metrics = {}
    for name, values_L in figures.items():
        metrics[f"load/{name}"] = float(values_L.mean())
        named = zip(layers, values_L.tolist(), strict=True)
        metrics |= {f"load/layer_{layer:02d}/{name}": value for layer, value in named}
    return metrics
