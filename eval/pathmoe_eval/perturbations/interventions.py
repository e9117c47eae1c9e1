"""Interventions at the experts: tokens are sent to other experts than the router chose, with the weights that it gave.

Each is a context manager around forwards of any MoE of transformers, and leaves the model as it was. Later layers
route for themselves what then reaches them. A `RoutingRecorder` inside or outside of it records what the experts were
really given. Nested, the inner one acts first.
"""

# Shapes: T tokens of one forward, L MoE layers, E experts, K experts per token.

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pathmoe_eval.perturbations.token_draws import TokenKeys
from pathmoe_eval.traces.moe_layers import MoELayer, moe_layers

Rewrite = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer's index, ids [T, K] and weights [T, K] to the ids [T, K] that its experts are to be given."""


def index_permutations(router_of_layer: Sequence[int], num_experts: int, seed: int) -> NDArray[np.int64]:
    """Uniformly random permutations [L, E] of expert indices, the same in layers of equal number.

    `range(L)` gives every layer its own; a model's `router_of_layer` gives layers that share a router the same one. For
    independent routers both are one intervention, and with equal seeds the same permutations.

    Args:
        router_of_layer: one integer of at least 0 a layer.
        num_experts: E.
        seed: at least 0; with it, a router's permutation is fixed.
    """
    of_router = {
        router: np.random.default_rng([seed, router]).permutation(num_experts) for router in set(router_of_layer)
    }
    return np.stack([of_router[router] for router in router_of_layer])


@contextmanager
def permuted_experts(model: nn.Module, permutation_LE: NDArray[np.integer]) -> Iterator[None]:
    """Send what was chosen for expert e of layer l to expert `permutation_LE[l, e]`.

    Args:
        model: a transformers model with routers.
        permutation_LE: [MoE layers, experts], a permutation in each row.

    Raises:
        ValueError: see `moe_layers`; rows that are not permutations of the model's experts, one for each layer.
    """
    layers = moe_layers(model)
    numbers = [layer.num_experts for layer in layers]
    if [sorted(row) for row in permutation_LE.tolist()] != [list(range(number)) for number in numbers]:
        raise ValueError(
            f"permutations ({list(permutation_LE.shape)}) must hold a permutation of each layer's experts ({numbers}); "
            "make them with index_permutations"
        )
    tables = torch.from_numpy(np.ascontiguousarray(permutation_LE, dtype=np.int64))

    def rewrite(layer: int, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        return tables[layer].to(ids_TK.device)[ids_TK.long()]

    with rewritten_experts(layers, rewrite):
        yield


@contextmanager
def reassigned_experts(model: nn.Module, seed: int) -> Iterator[None]:
    """Send each token in each layer to K distinct experts, uniform among all, whatever the router chose.

    The draw is that of `token_draws`: independent between layers (also those that share a decision) and of batching.

    Args:
        model: a transformers model with routers.
        seed: any integer.

    Raises:
        ValueError: see `moe_layers` and `TokenKeys.draws`.
    """
    layers = moe_layers(model)
    with TokenKeys(model) as keys:

        def rewrite(layer: int, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
            shape = (len(ids_TK), layers[layer].num_experts)
            draws_TE = keys.draws(seed=seed, layer=layer, shape=shape, device=ids_TK.device)
            return draws_TE.argsort(dim=1)[:, : ids_TK.shape[1]]

        with rewritten_experts(layers, rewrite):
            yield


@contextmanager
def rewritten_experts(layers: Sequence[MoELayer], rewrite: Rewrite) -> Iterator[None]:
    """Have the experts of all layers given other ids; those that `rewrite` returns may be of any integer type."""
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            # In front of a recorder's hook, so that it sees what the experts do.
            handle = layer.experts.register_forward_pre_hook(
                partial(_rewrite_call, rewrite, index), prepend=True, with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


@torch.compiler.disable
def _rewrite_call(
    rewrite: Rewrite, layer: int, experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden_states, ids_TK, weights_TK, *rest = args
    ids_TK = rewrite(layer, ids_TK, weights_TK).to(ids_TK.dtype)
    # Our layers hand on the rows sorted by the router's ids.
    return (hidden_states, ids_TK, weights_TK, *rest), {name: kwargs[name] for name in kwargs if name != "dispatch"}
