"""The shared direction and the alignment of routers while a model trains: sums over batches and ranks."""

# Shapes: B batch, S sequence, T tokens of a forward, D hidden, L MoE layers with a router of their own.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pathmoe.model import PathMoEForCausalLM
from pathmoe_eval.geometry.directions import alignment, shared_direction
from pathmoe_eval.geometry.moments import StateMoments, singular_directions
from pathmoe_eval.geometry.router_map import RouterMap
from pathmoe_eval.traces.moe_layers import moe_layers


class GeometrySums:
    """Moments of what the routers of a model are handed, layer by layer."""

    def __init__(self, num_layers: int, hidden_size: int) -> None:
        """Count for a model of so many MoE layers."""
        self.moments = [StateMoments(hidden_size) for _ in range(num_layers)]

    @contextmanager
    def recording(self, model: PathMoEForCausalLM) -> Iterator[None]:
        """Within it, every forward of the model is added."""
        with ExitStack() as stack:
            for index, layer in enumerate(moe_layers(model)):
                hook = partial(self._see, index)
                stack.callback(layer.block.register_forward_pre_hook(hook).remove)
            yield

    @torch.compiler.disable
    def _see(self, layer: int, block: nn.Module, args: tuple[Any, ...]) -> None:
        self.moments[layer].update(args[0].detach().flatten(0, -2).float().cpu().numpy())

    def merge(self, other: GeometrySums) -> None:
        """Add everything that `other`, of the same model, has counted."""
        for mine, theirs in zip(self.moments, other.moments, strict=True):
            mine.merge(theirs)

    def figures(self, routers: Sequence[RouterMap | None]) -> dict[str, NDArray[np.float64]]:
        """By name, one number for each layer with a router of its own; routers without a matrix have the first alone.

        `shared_state_energy` and `shared_logit_energy`: see `SharedDirection`; `alignment`: the total of `Alignment`.

        Args:
            routers: of all MoE layers, as `router_maps` gives them.
        """
        rows: dict[str, list[float]] = {}
        for moments, router in zip(self.moments, routers, strict=True):
            if router is None:
                continue
            directions = singular_directions(moments)
            shared = shared_direction(directions, router.centred_ED)
            aligned = alignment(directions, router.centred_ED, moments.num_tokens)
            found = {
                "shared_state_energy": shared.state_energy,
                "shared_logit_energy": shared.logit_energy,
                "alignment": None if aligned is None else aligned.total,
            }
            for name, value in found.items():
                if value is not None:
                    rows.setdefault(name, []).append(value)
        return {name: np.array(values) for name, values in rows.items()}
