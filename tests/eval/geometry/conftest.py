"""Planted states and routers."""

# Shapes: N tokens, D hidden, E experts, K experts per token.

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.router_map import RouterMap, linear_map


class Layer(NamedTuple):
    """A layer of which everything is known."""

    states_ND: NDArray[np.float64]
    weight_ED: NDArray[np.float64]
    logits_NE: NDArray[np.float64]
    expert_ids_NK: NDArray[np.int64]
    router: RouterMap


def layer_of(states_ND: NDArray[np.float64], weight_ED: NDArray[np.float64], k: int = 2) -> Layer:
    """A layer that routes these states with this matrix."""
    logits_NE = states_ND @ weight_ED.T
    return Layer(states_ND, weight_ED, logits_NE, np.argsort(-logits_NE, axis=1)[:, :k], linear_map(weight_ED))


def random_layer(num_tokens: int, hidden_size: int, num_experts: int, seed: int, k: int = 2) -> Layer:
    """Gaussian states, off the origin, and a Gaussian router."""
    rng = np.random.default_rng(seed)
    states_ND = rng.normal(size=(num_tokens, hidden_size)) + rng.normal(size=hidden_size)
    return layer_of(states_ND, rng.normal(size=(num_experts, hidden_size)), k)


def random_rotation(size: int, seed: int) -> NDArray[np.float64]:
    """An orthogonal matrix."""
    orthogonal, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return orthogonal
