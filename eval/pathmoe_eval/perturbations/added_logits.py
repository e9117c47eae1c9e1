"""Numbers added to router logits, where the router makes them: what interventions at the routers are made of."""

# Shapes: B batch, S sequence, T = B*S tokens of one forward, D hidden, E experts.

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pathmoe import moe
from pathmoe_eval.traces.moe_layers import MoELayer, moe_layers

Added = Callable[[tuple[int, int], torch.device], Tensor]
"""From tokens, experts and a device to what is added [T, E]."""


@contextmanager
def added_logits(model: nn.Module, added: Mapping[int, Added]) -> Iterator[None]:
    """Add to the router logits of some layers, before scores, biases and the choice.

    Our fused kernel takes no noise, so that logits are made apart from the choice: on a GPU even zeros may change last
    bits. In layers that take over another's decision nothing is added.

    Args:
        model: a transformers model whose routers make their logits by one linear layer, or ours.
        added: what to add, by MoE layer.

    Raises:
        ValueError: see `moe_layers`; a router that the model does not declare; on a forward, one that makes its logits
            in another way.
    """
    layers = moe_layers(model)
    undeclared = [layers[index].name for index in added if layers[index].router is None]
    if undeclared:
        kind = type(model).__name__
        raise ValueError(f"model ({kind}) must declare the router of {undeclared[0]} to take noise; leave noise out")
    with ExitStack() as stack:
        for index, what in added.items():
            layer = layers[index]
            if isinstance(layer.block, moe.MoELayer):
                hook = partial(_hand, what)
                stack.callback(layer.block.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                stack.enter_context(_added_inside(layer, what))
        yield


def _hand(
    added: Added, block: moe.MoELayer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Ours takes noise as an argument."""
    call = inspect.signature(block.forward).bind(*args, **kwargs)
    if call.arguments["router"] is not None:
        x_BSD, given_TE = call.arguments["x_BSD"], call.arguments.get("noise_TE")
        noise_TE = added((x_BSD.shape[0] * x_BSD.shape[1], block.config.num_experts), x_BSD.device)
        call.arguments["noise_TE"] = noise_TE if given_TE is None else given_TE + noise_TE
    return call.args, call.kwargs


@contextmanager
def _added_inside(layer: MoELayer, added: Added) -> Iterator[None]:
    """Add to what the linear layer inside of a router's forward returns."""
    router = layer.router
    assert router is not None
    forward = router.forward
    had_its_own = "forward" in vars(router)

    def adding_forward(*args: Any, **kwargs: Any) -> Any:
        with _AddingLinear(layer.num_experts, added) as mode:
            output = forward(*args, **kwargs)
        if mode.num_calls != 1:
            raise ValueError(
                f"router of {layer.name} ({type(router).__name__}) must make its {layer.num_experts} logits by one "
                f"linear layer to take noise, not by {mode.num_calls}; leave noise out"
            )
        return output

    router.forward = adding_forward
    try:
        yield
    finally:
        if had_its_own:
            router.forward = forward
        else:
            del router.forward


class _AddingLinear(TorchFunctionMode):
    """Adds to the outputs of linear layers that have one number for each expert."""

    def __init__(self, num_experts: int, added: Added) -> None:
        super().__init__()
        self._num_experts, self._added = num_experts, added
        self.num_calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is not F.linear or output.shape[-1] != self._num_experts:
            return output
        self.num_calls += 1
        added_TE = self._added((output.shape[:-1].numel(), self._num_experts), output.device)
        return (output.float() + added_TE.view(output.shape)).to(output.dtype)
