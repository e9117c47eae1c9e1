"""Experts taken away from routers; the choice is the router's own among those that are kept."""

# Shapes: T tokens of one forward, E experts, K experts per token.

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pathmoe_eval.perturbations.added_logits import added_logits
from pathmoe_eval.traces.moe_layers import moe_layers

_SELECTION_BIASES = ("selection_bias_E", "e_score_correction_bias")


@contextmanager
def pruned_experts(model: nn.Module, kept: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Have the routers of some layers choose among the experts that are kept: the logits of the others are -inf, and so
    are what balancing adds to their scores for the choice.

    Layers that take over the decision of such a layer are pruned with it.

    Args:
        model: as for `noisy_logits`.
        kept: experts by MoE layer, at least as many as a token is given.

    Raises:
        ValueError: see `noisy_logits`; an expert that is not there; on a forward, a pruned expert that is chosen all
            the same, because too few are kept.
    """
    layers = moe_layers(model)
    pruned = {}
    for index, experts in kept.items():
        number = layers[index].num_experts
        if wrong := [expert for expert in experts if not 0 <= expert < number]:
            raise ValueError(f"kept ({wrong[0]}) must be an expert from 0 to {number - 1}; change it")
        pruned[index] = torch.ones(number, dtype=torch.bool).index_fill_(0, torch.tensor(experts, dtype=torch.long), 0)
    added = {index: partial(_minus_infinity, is_pruned_E) for index, is_pruned_E in pruned.items()}
    with added_logits(model, added), ExitStack() as stack:
        for index, is_pruned_E in pruned.items():
            for bias_E in _selection_biases(layers[index].block, len(is_pruned_E)):
                stack.callback(bias_E.copy_, bias_E.clone())
                bias_E.masked_fill_(is_pruned_E.to(bias_E.device), -torch.inf)
            hook = partial(_check_pruned, layers[index].name, is_pruned_E)
            stack.callback(layers[index].experts.register_forward_pre_hook(hook).remove)
        yield


def _minus_infinity(is_pruned_E: Tensor, shape: tuple[int, int], device: torch.device) -> Tensor:
    return torch.zeros(shape, device=device).masked_fill_(is_pruned_E.to(device), -torch.inf)


def _selection_biases(block: nn.Module, num_experts: int) -> list[Tensor]:
    """What is added to scores for the choice: a bias of ours, or of transformers' models, whatever holds it."""
    tensors = [*block.named_buffers(), *block.named_parameters()]
    return [
        tensor.detach().view(-1)
        for name, tensor in tensors
        if name.rpartition(".")[2] in _SELECTION_BIASES and tensor.numel() == num_experts
    ]


def _check_pruned(name: str, is_pruned_E: Tensor, experts: nn.Module, args: tuple[Any, ...]) -> None:
    if is_pruned_E.to(args[1].device)[args[1].long()].any():
        raise ValueError(
            f"router of {name} must choose among the {int((~is_pruned_E).sum())} experts that are kept, and has chosen "
            "another; keep more"
        )
