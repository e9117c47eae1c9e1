"""Interventions at the routers: noise on their logits, another number of experts; the choice is the router's own.

Each is a context manager around forwards of any MoE of transformers, and leaves the model as it was.
"""

# Shapes: T tokens of one forward, E experts.

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pathmoe import moe
from pathmoe_eval.perturbations.added_logits import added_logits
from pathmoe_eval.perturbations.token_draws import TokenKeys, standard_normal
from pathmoe_eval.traces.moe_layers import MoELayer, moe_layers

_NAMES_OF_K = ("top_k", "num_experts_per_tok")


@contextmanager
def noisy_logits(model: nn.Module, std_of_layer: Sequence[float], seed: int) -> Iterator[None]:
    """Add Gaussian noise to all router logits, before scores, biases and the choice.

    The draw is that of `token_draws`: independent between experts and layers, and of batching. In layers that take over
    another's decision nothing is added. Our fused kernel takes no noise, so that logits are made apart from the choice:
    on a GPU even noise of size 0 may change last bits.

    Args:
        model: a transformers model whose routers make their logits by one linear layer, or ours.
        std_of_layer: standard deviation of each MoE layer's noise, in units of logits.
        seed: any integer.

    Raises:
        ValueError: see `moe_layers` and `TokenKeys.draws`; not one deviation of at least 0 for each layer; a router
            that the model does not declare, or that makes its logits in another way.
    """
    layers = moe_layers(model)
    if len(std_of_layer) != len(layers) or not all(std >= 0 for std in std_of_layer):
        raise ValueError(
            f"std_of_layer ({list(std_of_layer)}) must hold a number of at least 0 for each of the {len(layers)} MoE "
            "layers; take them from logit_std"
        )
    with TokenKeys(model) as keys:
        noises = {index: partial(_noise, keys, seed, index, std) for index, std in enumerate(std_of_layer)}
        with added_logits(model, noises):
            yield


def _noise(keys: TokenKeys, seed: int, layer: int, std: float, shape: tuple[int, int], device: torch.device) -> Tensor:
    return std * standard_normal(keys.draws(seed=seed, layer=layer, shape=shape, device=device))


@contextmanager
def experts_per_token(model: nn.Module, k: int) -> Iterator[None]:
    """Have the model's own routers choose `k` experts for each token, weighed as the model weighs them.

    The result is that of the same weights in a model that is configured with `k`.

    Args:
        model: a transformers model with routers.
        k: at least 1, at most the number of experts.

    Raises:
        ValueError: see `moe_layers`; `k` out of range; on a forward, a router that keeps its number elsewhere.
    """
    layers = moe_layers(model)
    most = min(layer.num_experts for layer in layers)
    if not 1 <= k <= most:
        raise ValueError(f"k ({k}) must be at least 1 and at most the number of experts ({most}); change it")
    with ExitStack() as stack:
        for layer in layers:
            for holder in _holders_of_k(layer):
                for name in _NAMES_OF_K:
                    if isinstance(getattr(holder, name, None), int):
                        stack.enter_context(_set(holder, name, k))
            hook = layer.experts.register_forward_pre_hook(partial(_check_k, layer.name, k))
            stack.callback(hook.remove)
        yield


def _holders_of_k(layer: MoELayer) -> list[Any]:
    if isinstance(layer.block, moe.MoELayer):
        return [layer.block.config]
    return [holder for holder in (layer.router, layer.block) if holder is not None]


@contextmanager
def _set(holder: Any, name: str, value: int) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def _check_k(name: str, k: int, experts: nn.Module, args: tuple[Any, ...]) -> None:
    found = args[1].shape[-1]
    if found != k:
        raise ValueError(f"router of {name} must choose k ({k}) experts, but chose {found}; leave k as it is")
