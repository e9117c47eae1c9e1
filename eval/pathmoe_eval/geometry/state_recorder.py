"""Hidden states as routers are handed them, recorded beside the routing that they get."""

# Shapes: T tokens of one forward, N tokens of all forwards, D hidden, E experts, K experts per token, B batch,
# S sequence.

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pathmoe import moe
from pathmoe_eval.traces.moe_layers import MoELayer
from pathmoe_eval.traces.recorded_routing import RecordedRouting
from pathmoe_eval.traces.recorder import RoutingRecorder


@dataclass(frozen=True, eq=False, kw_only=True)
class RecordedStates:
    """What some forwards recorded, one behind the other."""

    routing: RecordedRouting
    """Of all MoE layers, with logits."""
    states: dict[int, NDArray[np.float32]]
    """By MoE layer, [N, D]."""


class StateRecorder:
    """Records states and routing inside of `with`, as `RoutingRecorder` does the latter alone, and with its rules."""

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        """Find the routers.

        Args:
            model: a transformers model with routers.
            layers: MoE layers whose states to record, counted from 0.

        Raises:
            ValueError: see `RoutingRecorder` with logits; a layer that is not there.
        """
        self.routing = RoutingRecorder(model, logits=True)
        found = len(self.routing.layers)
        if wrong := [layer for layer in layers if not 0 <= layer < found]:
            raise ValueError(f"--layers ({wrong[0]}) must be from 0 to {found - 1}, the model's last; change it")
        self._layers = tuple(layers)
        self._open = ExitStack()
        self._states: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def __enter__(self) -> Self:
        """Start recording."""
        self._open.enter_context(self.routing)
        for index in self._layers:
            module = _handed_states(self.routing.layers[index])
            handle = module.register_forward_pre_hook(partial(self._see, index))
            self._open.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the model as it was."""
        self._open.close()

    def take(self) -> RecordedStates:
        """What was recorded since the last `take`.

        Raises:
            ValueError: see `RoutingRecorder.take`; a router that was not called once in each forward.
        """
        routing = self.routing.take()
        states = {layer: torch.cat([x_TD.cpu() for x_TD in seen]).numpy() for layer, seen in self._states.items()}
        self._states = {layer: [] for layer in self._layers}
        for layer, states_ND in states.items():
            if len(states_ND) != len(routing.expert_ids_NLK):
                raise ValueError(
                    f"model (the router of {self.routing.layers[layer].name}) must be called once in each forward, "
                    f"with {len(routing.expert_ids_NLK)} tokens, not {len(states_ND)}; leave the layer out"
                )
        return RecordedStates(routing=routing, states=states)

    @torch.compiler.disable
    def _see(self, layer: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._states[layer].append(args[0].detach().flatten(0, -2).float())


def _handed_states(layer: MoELayer) -> nn.Module:
    """The module whose first argument are the states that the layer's router sees."""
    if isinstance(layer.block, moe.MoELayer):
        return layer.block
    assert layer.router is not None, "a recorder of logits has refused a layer without a declared router"
    return layer.router
