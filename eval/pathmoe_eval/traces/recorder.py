"""The routing that any MoE of transformers really takes, recorded where it is used: at the call of its experts."""

# Shapes: T tokens of one forward, L MoE layers, E experts, K experts per token, B batch, S sequence, D hidden.

from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pathmoe import moe
from pathmoe_eval.traces.moe_layers import decoder_of, moe_layers
from pathmoe_eval.traces.recorded_routing import ForwardRouting, RecordedRouting, join_forwards


@dataclass
class _UnderWay:
    """What was seen of a forward so far, by layer; each list should come to hold one element."""

    expert_calls: list[list[tuple[Tensor, ...]]]
    logits: list[list[Tensor]]


class RoutingRecorder:
    """Records a model's routing inside of `with`: `with RoutingRecorder(model) as recorder: model(...)`.

    Each forward through the model's MoE layers counts once: in scoring, in training, and each step of generation. What
    gradient checkpointing computes again in the backward pass is no forward, nor is one that raised. A layer that takes
    over another's decision is recorded like any other. Several recorders may record one model.

    Under torch.compile, recording runs outside of the graphs and cuts them at each MoE layer, so that `fullgraph=True`
    raises. A model that was compiled and called before the recorder began may keep to its graphs; then `take` raises.
    """

    def __init__(self, model: nn.Module, *, weights: bool = False, logits: bool = False) -> None:
        """Find the model's MoE layers.

        Args:
            model: a transformers model with routers, wrapped or not.
            weights: record the weights too.
            logits: record the router logits too. They are what the model declares to be its router's logits (Gemma 4
                declares scores), or for our fused kernel, which keeps them to itself, what the router's formula gives
                for what the kernel was handed.

        Raises:
            ValueError: see `moe_layers`; layers of different numbers of experts; logits of a router that the model does
                not declare.
        """
        self.layers = moe_layers(model)
        self._decoder = decoder_of(model, self.layers)
        self._kind = type(model).__name__
        self._keeps_weights, self._keeps_logits = weights, logits
        numbers = sorted({layer.num_experts for layer in self.layers})
        if len(numbers) > 1:
            raise ValueError(
                f"model ({self._kind}) must have as many experts in each MoE layer, not {numbers}; record a part of it"
            )
        self.num_experts = numbers[0]
        undeclared = [layer.name for layer in self.layers if layer.router is None]
        if logits and undeclared:
            raise ValueError(
                f"model ({self._kind}) must declare the router of {undeclared[0]} to give its logits; leave logits out"
            )
        self._handles: list[RemovableHandle] = []
        self._under_way: _UnderWay | None = None
        self._forwards: list[ForwardRouting] = []

    def __enter__(self) -> Self:
        """Start recording.

        Raises:
            ValueError: this recorder is recording already.
        """
        if self._handles:
            raise ValueError(f"recorder (of {self._kind}) must not be entered while it records; make another one")
        self._handles = [
            self._decoder.register_forward_pre_hook(self._begin),
            self._decoder.register_forward_hook(self._end),
        ]
        for index, layer in enumerate(self.layers):
            self._handles.append(layer.experts.register_forward_pre_hook(partial(self._see_experts, index)))
            if not self._keeps_logits:
                continue
            if isinstance(layer.block, moe.MoELayer):
                self._handles.append(layer.block.register_forward_hook(partial(self._see_our_logits, index)))
            elif layer.router is not None:
                self._handles.append(layer.router.register_forward_hook(partial(self._see_logits, index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the model as it was; what was recorded can still be taken."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._under_way = [], None

    @property
    def router_of_layer(self) -> tuple[int, ...]:
        """One integer a layer, equal where layers share a router's parameters."""
        return tuple(layer.router_index for layer in self.layers)

    def take(self) -> RecordedRouting:
        """The routing since the last `take`, which the recorder forgets; until then it lies on the model's device.

        Raises:
            ValueError: no forward since the last `take`; an expert id out of range.
        """
        forwards, self._forwards = self._forwards, []
        if not forwards:
            raise ValueError(
                f"recorder (of {self._kind}) must have seen a forward since the last take; "
                "call the model inside of `with`, and if it is compiled, compile it there too"
            )
        return join_forwards(forwards, self.num_experts, weights=self._keeps_weights)

    # The hooks keep state that graphs would be specialised to, one graph a forward.

    @torch.compiler.disable
    def _begin(self, decoder: nn.Module, args: tuple[Any, ...]) -> None:
        # In a backward pass, this is a checkpoint around the whole model that is computed again. Where checkpoints are
        # around its layers, those are called while no forward is under way.
        is_recomputation = torch._C._current_graph_task_id() != -1
        layers = range(len(self.layers))
        self._under_way = None if is_recomputation else _UnderWay([[] for _ in layers], [[] for _ in layers])

    @torch.compiler.disable
    def _see_experts(self, layer: int, experts: nn.Module, args: tuple[Any, ...]) -> None:
        if self._under_way is not None:
            # By position, since gpt-oss has other names for them.
            self._under_way.expert_calls[layer].append(tuple(arg.detach() for arg in args[1:3]))

    @torch.compiler.disable
    def _see_logits(self, layer: int, router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._under_way is not None:
            logits = output if isinstance(output, Tensor) else output[self.layers[layer].logits_index]
            self._under_way.logits[layer].append(logits.detach().flatten(0, -2))

    @torch.compiler.disable
    def _see_our_logits(self, layer: int, block: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        if self._under_way is None:
            return
        x_BSD, router, *_ = args
        logits_TE = output[1].logits_TE
        if logits_TE is None and router is None:
            logits_TE = self._under_way.logits[layer - 1][-1]  # a follower's are those of the layer that decided
        elif logits_TE is None:
            with torch.no_grad():
                logits_TE, _ = router.logits(x_BSD.flatten(0, 1), None)
        self._under_way.logits[layer].append(logits_TE.detach())

    @torch.compiler.disable
    def _end(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen, self._under_way = self._under_way, None
        if seen is None:
            return
        batch, length = output[0].shape[:2]
        self._check(seen, batch * length)
        ids, weights = zip(*(calls[0] for calls in seen.expert_calls), strict=True)
        self._forwards.append(
            ForwardRouting(
                # Half the memory and more; wide enough that no id out of range becomes one in range.
                expert_ids_LTK=_stack(ids).to(torch.int16 if self.num_experts < 2**15 else torch.int64),
                weights_LTK=_stack(weights),
                logits_LTE=_stack([calls[0] for calls in seen.logits]) if self._keeps_logits else None,
                shape=(batch, length),
            )
        )

    def _check(self, seen: _UnderWay, num_tokens: int) -> None:
        """Raise unless each layer handed its experts the ids and weights of all tokens once, and has their logits."""
        first = seen.expert_calls[0]
        num_experts_per_tok = first[0][0].shape[-1] if first and first[0] else 0
        for layer, calls, logits in zip(self.layers, seen.expert_calls, seen.logits, strict=True):
            found = [[list(tensor.shape) for tensor in call] for call in calls]
            if found != [[[num_tokens, num_experts_per_tok]] * 2]:
                raise ValueError(
                    f"model ({self._kind}) must call {layer.name} once in a forward, with ids and weights "
                    f"[{num_tokens}, {num_experts_per_tok}], not {found}; record a part where layers see all"
                )
            of_router = [list(logits_TE.shape) for logits_TE in logits]
            if self._keeps_logits and of_router != [[num_tokens, self.num_experts]]:
                raise ValueError(
                    f"model ({self._kind}) must give {layer.name} router logits [{num_tokens}, {self.num_experts}], "
                    f"not {of_router}; leave logits out"
                )


def _stack(of_layers: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Tensors of all layers as one, on the device of the first layer, where the model lies on several."""
    return torch.stack([of_layer.to(of_layers[0].device) for of_layer in of_layers])
