"""Which router serves which layer, and which layer decides for which: path-constrained routing, in integers.

Layers here are the MoE layers only, counted from 0; leading dense layers have no router and are left out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SharingPlan:
    """Who routes for whom, per MoE layer.

    A layer *decides* when it is the first of its decision block; the other layers of the block follow it, that is,
    they take its expert ids and weights as they are.
    """

    decider_of_layer: tuple[int, ...]
    """The layer whose decision this layer takes; its own index when it decides."""
    router_of_layer: tuple[int, ...]
    """Index of the router whose parameters made this layer's decision (the decider's router)."""
    slot_of_layer: tuple[int, ...]
    """Position of the decider among the deciders of its router: which per-layer adapter of the router is used."""
    deciders_of_router: tuple[tuple[int, ...], ...]
    """For each router, the layers that decide with it; never empty."""

    @property
    def num_routers(self) -> int:
        """Number of distinct routers."""
        return len(self.deciders_of_router)

    @property
    def deciding_layers(self) -> tuple[int, ...]:
        """The layers that make a decision of their own, in order."""
        return tuple(layer for layer, decider in enumerate(self.decider_of_layer) if layer == decider)


def block_lengths(layers_per_block: int | Sequence[int] | None, num_layers: int, key: str) -> list[int]:
    """Lengths of the blocks of consecutive layers that `layers_per_block` stands for.

    A number gives blocks of that many layers, the last one shorter where it does not divide the depth; a list is taken
    as it is; None is one block over all layers.

    Raises:
        ValueError: a length below 1, a number above the depth, or a list that does not sum to it; `key` names the
            field.
    """
    if layers_per_block is None:
        return [num_layers]
    if isinstance(layers_per_block, int):
        if not 1 <= layers_per_block <= num_layers:
            raise ValueError(
                f"{key} ({layers_per_block}) must be between 1 and the number of MoE layers ({num_layers}); "
                "use null for one block over all of them"
            )
        full, rest = divmod(num_layers, layers_per_block)
        return [layers_per_block] * full + ([rest] if rest else [])
    lengths = list(layers_per_block)
    if any(length < 1 for length in lengths):
        raise ValueError(f"{key} ({lengths}) must be block lengths of at least 1; take the others out of the list")
    if sum(lengths) != num_layers:
        raise ValueError(
            f"{key} ({lengths}) must be block lengths that sum to the number of MoE layers ({num_layers}), but they "
            f"sum to {sum(lengths)}; change the list, or model.config.num_hidden_layers"
        )
    return lengths


def _block_of_layer(lengths: Sequence[int]) -> list[int]:
    return [block for block, length in enumerate(lengths) for _ in range(length)]


def sharing_plan(
    num_layers: int,
    layers_per_router: int | Sequence[int] | None = 1,
    layers_per_decision: int | Sequence[int] | None = 1,
) -> SharingPlan:
    """Plan of routers and decisions for `num_layers` MoE layers.

    The first layer of a decision block decides, with the router of its own router block (our choice: the PathMoE paper
    does not say which layer of a MonoB block decides).

    Raises:
        ValueError: lengths that do not fit the depth, or a router block in which no layer would decide.
    """
    router_lengths = block_lengths(layers_per_router, num_layers, "model.config.layers_per_router")
    decision_lengths = block_lengths(layers_per_decision, num_layers, "model.config.layers_per_decision")
    router_block, decision_block = _block_of_layer(router_lengths), _block_of_layer(decision_lengths)

    decider_of_layer = [decision_block.index(block) for block in decision_block]
    deciders: list[list[int]] = [[] for _ in router_lengths]
    for layer in sorted(set(decider_of_layer)):
        deciders[router_block[layer]].append(layer)
    for router, its_deciders in enumerate(deciders):
        if not its_deciders:
            layers = [layer for layer, block in enumerate(router_block) if block == router]
            routers, decisions = json.dumps(layers_per_router), json.dumps(layers_per_decision)
            raise ValueError(
                f"model.config.layers_per_router ({routers}) gives router {router} to MoE layers {layers}, none of "
                f"which decides under model.config.layers_per_decision ({decisions}), so no layer would use it; make "
                "every router block hold the first layer of a decision block"
            )
    return SharingPlan(
        decider_of_layer=tuple(decider_of_layer),
        router_of_layer=tuple(router_block[decider] for decider in decider_of_layer),
        slot_of_layer=tuple(deciders[router_block[decider]].index(decider) for decider in decider_of_layer),
        deciders_of_router=tuple(tuple(layers) for layers in deciders),
    )
