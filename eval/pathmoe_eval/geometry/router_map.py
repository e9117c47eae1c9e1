"""What a router sees of a hidden state: its matrix, and the subspace that its logits depend on.

Adding one number to all logits changes no softmax and no choice, so that a router is centred before anything else: the
mean of its rows, which does just that, is taken out of each (the projection of "The Myth of Expert Specialization",
arXiv 2604.09780, Proposition 2).
"""

# Shapes: N tokens, D hidden, E experts, P router width, R dimensions of the visible subspace.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pathmoe.model import PathMoEModel
from pathmoe.routers import CosineRouter, LayerRouter, LinearRouter, RecurrentRouter
from pathmoe_eval.traces.moe_layers import MoELayer, moe_layers

Matrix = NDArray[np.float64]

# Singular values below this share of the largest are rounding (our choice; weights are bf16 or wider).
_RANK_TOLERANCE = 1e-6
# What centring leaves of equal rows, over their size.
_CENTRING_TOLERANCE = 1e-14


@dataclass(frozen=True, eq=False, kw_only=True)
class RouterMap:
    """How the router of one layer sees hidden states."""

    kind: str
    """linear: logits are a product of its matrix and the state. cosine: they are that product over a norm.
    recurrent: the state enters through a projection, and logits are of what a GRU makes of it."""
    centred_ED: Matrix | None
    """The matrix, its rows less their mean: of a cosine router that of the numerator, without the norm and without what
    the projection's bias adds for all tokens alike; None for a recurrent one."""
    visible_RD: Matrix
    """Orthonormal rows that span what logits depend on, up to one number added to all: of a linear router the row space
    of `centred_ED`; else, since norms and gates see all of it, that of the projection (our reading). Its complement is
    the null space."""

    def split(self, states_ND: NDArray[np.floating]) -> tuple[Matrix, Matrix]:
        """States in the router's row space, as coordinates [N, R], and what is left of them [N, D]."""
        states_ND = states_ND.astype(np.float64, copy=False)
        coordinates_NR = states_ND @ self.visible_RD.T
        return coordinates_NR, states_ND - coordinates_NR @ self.visible_RD


def linear_map(weight_ED: NDArray[np.floating]) -> RouterMap:
    """The map of a router whose logits are `weight_ED` times the state, with or without a bias."""
    centred_ED = centred(weight_ED)
    return RouterMap(kind="linear", centred_ED=centred_ED, visible_RD=row_space(centred_ED))


def centred(weight_ED: NDArray[np.floating]) -> Matrix:
    """(I - 1 1^T / E) W: logits less their mean over the experts; exactly 0 where all rows are equal."""
    weight_ED = weight_ED.astype(np.float64)
    centred_ED = weight_ED - weight_ED.mean(axis=0)
    is_rounding = np.abs(centred_ED).max(initial=0.0) <= _CENTRING_TOLERANCE * np.abs(weight_ED).max(initial=0.0)
    return np.zeros_like(centred_ED) if is_rounding else centred_ED


def row_space(matrix: Matrix) -> Matrix:
    """Orthonormal rows that span the rows of a matrix [., D]: [R, D]."""
    _, singular, rows = np.linalg.svd(matrix, full_matrices=False)
    largest = singular[0] if len(singular) else 0.0
    return rows[singular > _RANK_TOLERANCE * largest]


def router_maps(model: nn.Module) -> tuple[RouterMap | None, ...]:
    """The map of every MoE layer's router; None for a layer that takes over the decision of one before.

    Args:
        model: a transformers model with routers, ours or any whose routers have one matrix [E, D].

    Raises:
        ValueError: see `moe_layers`; a router without such a matrix, or with several.
    """
    for module in model.modules():
        if isinstance(module, PathMoEModel):
            ours = [module.router_of(layer) for layer in range(module.config.num_moe_layers)]
            return tuple(None if router is None else _map_of_ours(router) for router in ours)
    return tuple(_map_of_theirs(layer) for layer in moe_layers(model))


def _map_of_theirs(layer: MoELayer) -> RouterMap:
    parameters = [] if layer.router is None else list(layer.router.parameters())
    matrices = [one for one in parameters if one.ndim == 2 and len(one) == layer.num_experts]
    if len(matrices) != 1:
        kind = "none" if layer.router is None else type(layer.router).__name__
        raise ValueError(
            f"--model: the router of {layer.name} ({kind}) must have one matrix of a row for each expert, and has "
            f"{len(matrices)}; its geometry can't be told otherwise"
        )
    return linear_map(_array(matrices[0]))


def _map_of_ours(of_layer: LayerRouter) -> RouterMap:
    router = of_layer.router
    if isinstance(router, LinearRouter):
        return linear_map(_array(router.matrix(of_layer.slot)))
    if isinstance(router, CosineRouter):
        projection_PD = _array(router.projection.weight)
        embedding_PE = _array(router.expert_embedding_PE)
        directions_EP = (embedding_PE / np.linalg.norm(embedding_PE, axis=0)).T
        return RouterMap(
            kind="cosine", centred_ED=centred(directions_EP @ projection_PD), visible_RD=row_space(projection_PD)
        )
    assert isinstance(router, RecurrentRouter), f"{type(router).__name__} is a router that this does not know"
    return RouterMap(kind="recurrent", centred_ED=None, visible_RD=row_space(_array(router.in_projection.weight)))


def _array(tensor: Tensor) -> Matrix:
    return tensor.detach().double().cpu().numpy()
