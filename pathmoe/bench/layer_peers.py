"""One MoE layer, router included, as ours and with transformers' experts implementations: same weights and inputs."""

# Shapes: B batch, S sequence, T = B*S tokens, K experts per token, D hidden.

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import OlmoeForCausalLM
from transformers.integrations.sonicmoe import load_sonicmoe_kernel
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from pathmoe.bench.layer import LayerShape, busiest_over_mean, moe_layer
from pathmoe.bench.peer import build_peer
from pathmoe.model import PathMoEForCausalLM
from pathmoe.olmoe import olmoe_state_dict
from pathmoe.training.errors import fail, one_line

PEERS = ("eager", "grouped_mm", "sonicmoe")
LOADERS = {"sonicmoe": load_sonicmoe_kernel}
"""What raises where a peer that needs more than transformers is not there, or can't run."""

TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-4}
"""Largest norm of a difference from ours, relative to ours: each implementation rounds in places of its own."""

TENSORS = ("output", "gradient of x", "gradient of gate_up", "gradient of down", "gradient of the router")


class Layer(NamedTuple):
    """An MoE layer."""

    forward: Callable[[Tensor], Tensor]
    parameters: list[nn.Parameter]
    """Those of the experts, gate_up and down, then the router's."""


class Layers(NamedTuple):
    """The candidates of one shape, and what they are given."""

    layers: dict[str, Layer]
    """Ours first."""
    x_BSD: Tensor
    grad_BSD: Tensor
    busiest_over_mean: float
    """Tokens of the busiest expert over the mean."""
    left_out: dict[str, str]
    """The peers that are not among them, and why."""


def agreeing_layers(
    shape: LayerShape, device: torch.device, dtype: torch.dtype, peers: tuple[str, ...] = PEERS
) -> Layers:
    """Ours and those peers that can run, after a check that their outputs and gradients agree; ends where they do not.

    transformers' router rounds its logits to `dtype`, ours does not, so that some tokens get other experts: these are
    left out of the comparison.
    """
    torch.manual_seed(0)
    with torch.device(device):
        ours, peer = PathMoEForCausalLM(shape.config), build_peer(shape.config)
        x_BSD = torch.randn(shape.num_blocks, shape.length, shape.config.hidden_size).to(dtype).requires_grad_()
        grad_BSD = torch.randn(x_BSD.shape).to(dtype)
    peer.load_state_dict(olmoe_state_dict(ours.state_dict(), ours.config))
    ours = ours.to(dtype)  # type: ignore[arg-type]  # transformers wraps the method and loses its types
    block = peer.model.layers[0].mlp.to(dtype)
    kept_BSD = grad_BSD * same_choice(ours, block, x_BSD).view(*x_BSD.shape[:2], 1)
    layers, left_out = {"ours": Layer(*moe_layer(ours))}, {}
    expected = results(layers["ours"], x_BSD, kept_BSD)
    for name in peers:
        layer = Layer(partial(run_block, peer, name), block_parameters(block))
        if reason := why_not(name, layer, x_BSD, kept_BSD, expected):
            left_out[name] = reason
        else:
            layers[name] = layer
    return Layers(layers, x_BSD, grad_BSD, busiest_over_mean(ours, x_BSD), left_out)


def run_block(peer: OlmoeForCausalLM, experts_implementation: str, x_BSD: Tensor) -> Tensor:
    """The first MoE block of a model of transformers with one of its experts implementations."""
    peer.config._experts_implementation = experts_implementation
    return peer.model.layers[0].mlp(x_BSD)


def block_parameters(block: OlmoeSparseMoeBlock) -> list[nn.Parameter]:
    """In the order of ours."""
    return [block.experts.gate_up_proj, block.experts.down_proj, block.gate.weight]


@torch.no_grad()
def same_choice(ours: PathMoEForCausalLM, block: OlmoeSparseMoeBlock, x_BSD: Tensor) -> Tensor:
    """[T] bool, where both routers choose the same experts; ends where they do so for less than half of the tokens."""
    our_ids_TK = ours.model.layers[0].mlp(x_BSD, ours.model.router_of(0))[1].expert_ids_TK
    _, _, their_ids_TK = block.gate(x_BSD)
    same_T = (our_ids_TK.sort(dim=-1).values == their_ids_TK.sort(dim=-1).values).all(dim=-1)
    if (share := float(same_T.float().mean())) < 0.5:
        fail(f"both routers must choose the same experts for most tokens, not for {share:.0%}; nothing is timed")
    return same_T


def results(layer: Layer, x_BSD: Tensor, grad_BSD: Tensor) -> list[Tensor]:
    """`TENSORS`, of the tokens that have a gradient."""
    y_BSD = layer.forward(x_BSD)
    gradients = torch.autograd.grad(y_BSD, [x_BSD, *layer.parameters], grad_BSD)
    return [y_BSD.detach() * (grad_BSD != 0).any(dim=-1, keepdim=True), *gradients]


def why_not(name: str, layer: Layer, x_BSD: Tensor, grad_BSD: Tensor, expected: list[Tensor]) -> str | None:
    """Why a peer can't be timed; one that is always there and does not agree ends the program."""
    try:
        LOADERS.get(name, lambda: None)()
        reason = disagreement(results(layer, x_BSD, grad_BSD), expected, TOLERANCE[x_BSD.dtype])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # A kernel of others, from wherever they load it, may fail in any way.
        if name not in LOADERS:
            raise
        return one_line(str(error))
    if reason and name not in LOADERS:
        fail(f"{name} must agree with ours, but {reason}; nothing is timed")
    return reason


def disagreement(theirs: list[Tensor], expected: list[Tensor], tolerance: float) -> str | None:
    """The first of `TENSORS` that differs by more than `tolerance`, in words; None where all agree."""
    for name, got, want in zip(TENSORS, theirs, expected, strict=True):
        difference = float((got.float() - want.float()).norm() / want.float().norm())
        # A NaN is above no tolerance.
        if not difference <= tolerance:
            return f"its {name} differs by {difference:.3g} of its norm, above {tolerance:g}"
    return None
