"""The loss: next-token cross-entropy, memory-lean on request, and the routing losses averaged over layers."""

# Shapes: B batch, S sequence, T = B*S tokens, D hidden, V vocabulary, E experts, L deciding layers.

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pathmoe.balancing import switch_loss, z_loss
from pathmoe.config import PathMoEConfig
from pathmoe.routing import Routing

LOGITS_AT_A_TIME = 1 << 21
"""8 MiB in fp32."""


def language_model_loss(
    hidden_BSD: Tensor,
    head_VD: Tensor,
    labels_BS: Tensor,
    num_items: int | Tensor | None = None,
    logits_BSV: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the next token, summed over targets and divided by `num_items`; fp32 scalar.

    Args:
        hidden_BSD: [B, S, D] final hidden states.
        head_VD: [V, D] output head.
        labels_BS: [B, S] aligned targets, -100 for none.
        num_items: divisor; the number of targets in `labels_BS` when None.
        logits_BSV: [B, S, V] when they are at hand; otherwise the loss goes through the vocabulary in chunks of tokens
            and never holds them all. Under autocast the chunks' GEMMs run in its dtype, which torch does not do by
            itself.
    """
    labels_T = labels_BS.reshape(-1)
    if logits_BSV is not None:
        total = F.cross_entropy(logits_BSV.flatten(0, 1).float(), labels_T, reduction="sum")
    else:
        hidden_TD = hidden_BSD.flatten(0, 1)
        device_type = hidden_TD.device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            hidden_TD, head_VD = hidden_TD.to(dtype), head_VD.to(dtype)
        options = _chunks(hidden_TD, head_VD)
        # In half precision torch returns its sum over chunks in that precision too, percents off; its loss per token
        # costs one more GEMM in backward, and can be summed here.
        reduction = "sum" if torch.finfo(hidden_TD.dtype).bits >= 32 else "none"
        loss = F.linear_cross_entropy(hidden_TD, head_VD, labels_T, reduction=reduction, options=options)
        total = loss.float().sum()
    return total / ((labels_T != -100).sum().clamp(min=1) if num_items is None else num_items)


def _chunks(hidden_TD: Tensor, head_VD: Tensor) -> torch.nn.LinearCrossEntropyOptions:
    """How many tokens' logits are held at a time: torch's own choice, about as many numbers as x has, or more."""
    if hidden_TD.numel() // 2 >= LOGITS_AT_A_TIME:
        return torch.nn.LinearCrossEntropyOptions()
    # A narrow model's chunks would be of a few tokens, whose GEMMs are slow.
    tokens = max(1, LOGITS_AT_A_TIME // head_VD.shape[0])
    return torch.nn.LinearCrossEntropyOptions(batch_chunk_size=tokens, chunking_method=None)


def routing_losses(
    routings: Sequence[Routing],
    config: PathMoEConfig,
    token_mask_T: Tensor | None = None,
    load_LE: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Switch loss and z-loss, each the mean over deciding layers, before their coefficients; None where not asked for.

    Averaged per layer and not pooled over layers: pooled, a collapsed layer can hide behind another one.

    Args:
        routings: of the deciding layers.
        config: the coefficients are read.
        token_mask_T: [T] bool, False for padding, as the routings were given it.
        load_LE: [L, E] load to take the Switch loss's f from, such as the global batch's; the routings' own when None.
    """
    balance = spread = None
    if config.router_aux_loss_coef:
        loads = [None] * len(routings) if load_LE is None else list(load_LE)
        per_layer = [switch_loss(r.routed, load) for r, load in zip(routings, loads, strict=True)]
        balance = torch.stack(per_layer).mean()
    if config.router_z_loss_coef:
        spread = torch.stack([z_loss(routing.routed.logsumexp_T, token_mask_T) for routing in routings]).mean()
    return balance, spread
