"""The shared direction and the alignment of routers while a model trains: sums over batches and ranks."""

# Shapes: B batch, S sequence, T tokens of a forward, D hidden, L MoE layers with a router of their own.

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from pathmoe.model import PathMoEForCausalLM
from pathmoe_eval.geometry.directions import alignment, shared_direction
from pathmoe_eval.geometry.moments import StateMoments, singular_directions
from pathmoe_eval.geometry.router_map import RouterMap
from pathmoe_eval.traces.moe_layers import moe_layers

_OF_STATES = ("shared_state_energy", "mean_state_energy")
_OF_LOGITS = ("shared_logit_energy", "mean_logit_energy", "alignment")


class GeometrySums:
    """Moments of what the routers of a model are handed, layer by layer."""

    def __init__(self, routers: Sequence[RouterMap | None], hidden_size: int) -> None:
        """Count for a model with these routers, as `router_maps` gives them; layers without their own are left out."""
        self._routers = routers
        self.moments = {layer: StateMoments(hidden_size) for layer, router in enumerate(routers) if router is not None}

    @contextmanager
    def recording(self, model: PathMoEForCausalLM) -> Iterator[None]:
        """Within it, every forward of the model is added."""
        with ExitStack() as stack:
            for index, layer in enumerate(moe_layers(model)):
                if index not in self.moments:
                    continue
                hook = partial(self._see, index)
                stack.callback(layer.block.register_forward_pre_hook(hook).remove)
            yield

    @torch.compiler.disable
    def _see(self, layer: int, block: nn.Module, args: tuple[Any, ...]) -> None:
        x_TD = args[0].detach().flatten(0, -2).float()
        # Multiplied where the states are, which are far larger than the product; in fp32 under any precision.
        with torch.autocast(x_TD.device.type, enabled=False):
            sum_D, gram_DD = (of_chunk.cpu().double().numpy() for of_chunk in (x_TD.sum(dim=0), x_TD.T @ x_TD))
        self.moments[layer].add(len(x_TD), sum_D, gram_DD)

    def merge(self, other: GeometrySums) -> None:
        """Add everything that `other`, of the same model, has counted."""
        for layer, moments in self.moments.items():
            moments.merge(other.moments[layer])

    def figures(self) -> dict[str, dict[int, float]]:
        """By name and layer, for layers with a router of their own; those without a matrix have the ones of states.

        `shared_state_energy`, `shared_logit_energy`, `mean_state_energy` and `mean_logit_energy`: see
        `SharedDirection`; `alignment`: the total of `Alignment`.
        Not a number where states are none, which must not end a training that may yet recover.
        """
        found: dict[str, dict[int, float]] = {}
        for layer, moments in self.moments.items():
            for name, value in _figures(moments, self._routers[layer]).items():
                if value is not None:
                    found.setdefault(name, {})[layer] = value
        return found


def _figures(moments: StateMoments, router: RouterMap | None) -> dict[str, float | None]:
    assert router is not None, "layers without a router are left out"
    if not np.isfinite(moments.gram_DD).all():
        of_logits = None if router.centred_ED is None else math.nan
        return {name: of_logits if name in _OF_LOGITS else math.nan for name in (*_OF_STATES, *_OF_LOGITS)}
    directions = singular_directions(moments)
    shared = shared_direction(directions, router.centred_ED)
    aligned = alignment(directions, router.centred_ED)
    return {
        "shared_state_energy": shared.state_energy,
        "mean_state_energy": shared.mean_state_energy,
        "shared_logit_energy": shared.logit_energy,
        "mean_logit_energy": shared.mean_logit_energy,
        "alignment": None if aligned is None else aligned.total,
    }
