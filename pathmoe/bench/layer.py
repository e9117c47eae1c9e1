"""One MoE layer, router included, beside a dense SwiGLU of equal active FLOPs: time, and bytes saved for backward."""

# Shapes: B batch, S sequence, T = B*S tokens, D hidden, E experts.

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.olmoe.modeling_olmoe import OlmoeMLP

from pathmoe.bench.paired import paired_seconds, ratio
from pathmoe.bench.peer import build_peer
from pathmoe.bench.saved import saved_bytes
from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM

Figure = int | float | tuple[float, ...]
"""A number, or a ratio's lower quartile, median and upper quartile."""


class LayerShape(NamedTuple):
    """A layer and what it is given."""

    config: PathMoEConfig
    num_blocks: int
    length: int

    def sizes(self) -> tuple[int, int, int, int, int]:
        """Tokens T, hidden size D, width F of an expert, experts E, and experts per token K."""
        config = self.config
        return (
            self.num_blocks * self.length, config.hidden_size, config.moe_intermediate_size, config.num_experts,
            config.num_experts_per_tok,
        )  # fmt: skip

    def described(self) -> str:
        """In letters and numbers."""
        return " ".join(f"{letter}={size}" for letter, size in zip("TDFEK", self.sizes(), strict=True))


def layer_shape(
    num_tokens: int,
    hidden_size: int,
    width: int,
    num_experts: int,
    num_experts_per_tok: int,
    norm_topk_prob: bool = True,
) -> LayerShape:
    """A model of one layer, for its MoE layer's sake, and one block of tokens."""
    config = PathMoEConfig(
        vocab_size=64, num_hidden_layers=1, num_attention_heads=4, hidden_size=hidden_size,
        moe_intermediate_size=width, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok,
        norm_topk_prob=norm_topk_prob,
    )  # fmt: skip
    return LayerShape(config, 1, num_tokens)


LAYERS = {"a small": layer_shape(4096, 128, 128, 16, 2), "a large": layer_shape(2048, 512, 512, 64, 8)}


def layer_pass(
    layer: Callable[[Tensor], Tensor], parameters: Sequence[Tensor], x_BSD: Tensor, grad_BSD: Tensor
) -> Callable[[], None]:
    """Forward and backward of one layer; gradients are returned and dropped, as a step that clears them leaves it."""

    def run() -> None:
        torch.autograd.grad(layer(x_BSD), [x_BSD, *parameters], grad_BSD)

    return run


def moe_layer(model: PathMoEForCausalLM) -> tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]:
    """The first MoE layer of a model with its router, and the parameters of both."""
    layer, router = model.model.layers[0].mlp, model.model.router_of(0)
    parameters = [*layer.parameters(), *model.model.routers[0].parameters()]
    return lambda x_BSD: layer(x_BSD, router)[0], parameters


def dense_layer(config: PathMoEConfig) -> OlmoeMLP:
    """A dense SwiGLU of as many FLOPs as the active experts."""
    width = config.num_experts_per_tok * config.moe_intermediate_size
    shape = argparse.Namespace(hidden_size=config.hidden_size, intermediate_size=width, hidden_act=config.hidden_act)
    return OlmoeMLP(shape)


def busiest_over_mean(model: PathMoEForCausalLM, x_BSD: Tensor) -> float:
    """Tokens of the busiest expert of the first MoE layer over the mean: 1 is a perfect balance."""
    load_E = model.model.layers[0].mlp(x_BSD, model.model.router_of(0))[1].routed.load_E.double()
    return float(load_E.max() / load_E.mean())


def floor_bytes(config: PathMoEConfig, num_tokens: int) -> int:
    """What backward can't do without, in fp32: x, the pre-activation, and the routing (four numbers a routed row)."""
    num_rows = num_tokens * config.num_experts_per_tok
    return 4 * (num_tokens * config.hidden_size + num_rows * 2 * config.moe_intermediate_size + 4 * num_rows)


def layer_figures(shape: LayerShape, rounds: int) -> dict[str, Figure]:
    """One MoE layer of both models, router included, beside a dense FFN, on random hidden states."""
    torch.manual_seed(0)
    config, num_blocks, length = shape
    ours, peer, dense = PathMoEForCausalLM(config), build_peer(config), dense_layer(config)
    x_BSD = torch.randn(num_blocks, length, config.hidden_size, requires_grad=True)
    grad_BSD = torch.randn_like(x_BSD)
    our_layer, our_parameters = moe_layer(ours)
    layers = {
        "ours": (our_layer, our_parameters),
        "peer": (peer.model.layers[0].mlp, list(peer.model.layers[0].mlp.parameters())),
        "dense": (dense, list(dense.parameters())),
    }
    passes = {name: layer_pass(layer, parameters, x_BSD, grad_BSD) for name, (layer, parameters) in layers.items()}
    seconds = paired_seconds(passes, rounds)
    # Beside x and the weights, which live anyway; x is the floor's too.
    floor, x_bytes = floor_bytes(config, num_blocks * length), 4 * x_BSD.numel()
    saved = {
        name: x_bytes + saved_bytes(partial(layer, x_BSD), (x_BSD, *weights))
        for name, (layer, weights) in layers.items()
    }
    return {
        "busiest expert over mean": busiest_over_mean(ours, x_BSD),
        "MoE layer over dense FFN of equal active FLOPs, time": ratio(seconds, "ours", "dense"),
        "peer's MoE layer over the same": ratio(seconds, "peer", "dense"),
        "saved for backward over the floor, bytes": saved["ours"] / floor,
        "peer's saved for backward over the same": saved["peer"] / floor,
    }
