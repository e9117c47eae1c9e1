"""`make bench`: steps of the tiny run and of its OLMoE peer, and their MoE layers, alternating in one process."""

# Shapes: B batch, S sequence, D hidden, E experts.

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.olmoe.modeling_olmoe import OlmoeMLP

from pathmoe.bench.paired import paired_seconds, ratio
from pathmoe.bench.peer import build_peer, our_inputs, peer_inputs
from pathmoe.bench.saved import saved_bytes
from pathmoe.bench.tiny import TinyRun, tiny_run
from pathmoe.config import PathMoEConfig
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.config_files import config_folder
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.optim import build_optimizer
from pathmoe.training.provenance import provenance

Figure = int | float | tuple[float, ...]
"""A number, or a ratio's lower quartile, median and upper quartile."""


def training_step(model: PreTrainedModel, inputs: Mapping[str, Tensor | bool], run: TinyRun) -> Callable[[], None]:
    """One step as the tiny run takes it: forward, backward, clip, optimizer."""
    optimizer = build_optimizer(model, run.optimizer)

    def step() -> None:
        model(**inputs).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


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
    layer, router = model.model.layers[0].mlp, model.model.router_of(0)
    load_E = layer(x_BSD, router)[1].routed.load_E.double()
    return float(load_E.max() / load_E.mean())


def step_figures(run: TinyRun, rounds: int) -> dict[str, Figure]:
    """Steps of both models on the tiny run's first batch."""
    torch.manual_seed(0)
    batch = next(run.data.train_batches())
    ours, whole, peer = PathMoEForCausalLM(run.config), PathMoEForCausalLM(run.config), build_peer(run.config)
    seconds = paired_seconds(
        {
            "ours": training_step(ours, our_inputs(batch), run),
            "whole": training_step(whole, our_inputs(batch, return_logits=True), run),
            "peer": training_step(peer, peer_inputs(batch), run),
        },
        rounds,
    )
    num_tokens = batch["input_ids"].numel()
    return {
        "tokens per step": num_tokens,
        "ours, tokens/s": num_tokens / statistics.median(seconds["ours"]),
        "peer, tokens/s": num_tokens / statistics.median(seconds["peer"]),
        "speed of ours over peer": ratio(seconds, "peer", "ours"),
        "the same with all logits at once, as the peer's": ratio(seconds, "peer", "whole"),
    }


def layer_figures(config: PathMoEConfig, num_blocks: int, length: int, rounds: int) -> dict[str, Figure]:
    """One MoE layer of both models, router included, beside a dense FFN, on random hidden states."""
    torch.manual_seed(0)
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
    saved = {name: saved_bytes(partial(layer, x_BSD), (x_BSD, *weights)) for name, (layer, weights) in layers.items()}
    return {
        "busiest expert over mean": busiest_over_mean(ours, x_BSD),
        "MoE layer over dense FFN of equal active FLOPs, time": ratio(seconds, "ours", "dense"),
        "peer's MoE layer over the same": ratio(seconds, "peer", "dense"),
        "saved for backward beside x, ours, bytes per MoE layer": saved["ours"],
        "saved for backward beside x, peer, bytes per MoE layer": saved["peer"],
    }


def report(run: TinyRun, rounds: int) -> list[str]:
    """All figures as lines; a ratio is given as lower quartile, median and upper quartile."""
    blocks, length = run.data.micro_batch_size, run.data.manifest.sequence_length
    lines = []
    for name, value in (step_figures(run, rounds) | layer_figures(run.config, blocks, length, 3 * rounds)).items():
        numbers = value if isinstance(value, tuple) else (value,)
        lines.append(f"{name:<56}" + "  ".join(f"{x:,.2f}" if isinstance(x, float) else f"{x:,}" for x in numbers))
    return lines


def main() -> None:
    """Run the tests of what is timed, then time it, and print versions, commit and figures."""
    parser = OneLineParser(prog="python -m pathmoe.bench.step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="Rounds of steps that are timed.")
    rounds = parser.parse_args().rounds
    if rounds < 2:
        fail(f"--rounds ({rounds}) must be at least 2, for quartiles; raise it")
    root = config_folder().parent
    tests = [str(root / "tests" / name) for name in ("kernels", "pathmoe/test_olmoe.py", "pathmoe/test_experts.py")]
    if not (root / "tests").is_dir():
        fail(f"{root / 'tests'} must be there, as what is timed is tested first; run it from a checkout")
    if subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests], cwd=root).returncode:
        fail(f"{root / 'tests'}: the tests of what is timed must pass; mend what fails above")
    print(json.dumps(provenance(), indent=2))
    for line in report(tiny_run(), rounds):
        print(line)


if __name__ == "__main__":
    with_one_line_errors(main)
