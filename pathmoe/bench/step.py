"""`make bench`: steps of the tiny run and of its OLMoE peer, and their MoE layers, alternating in one process."""

import json
import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pathmoe.bench.layer import LAYERS, Figure, LayerShape, layer_figures
from pathmoe.bench.paired import paired_seconds, ratio
from pathmoe.bench.peer import build_peer, our_inputs, peer_inputs
from pathmoe.bench.shares import step_shares
from pathmoe.bench.tests_first import run_tests
from pathmoe.bench.tiny import TinyRun, tiny_run
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.config_files import config_folder
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.optim import build_optimizer
from pathmoe.training.provenance import provenance


def training_step(model: PreTrainedModel, inputs: Mapping[str, Tensor | bool], run: TinyRun) -> Callable[[], None]:
    """One step as the tiny run takes it: forward, backward, clip, optimizer."""
    optimizer = build_optimizer(model, run.optimizer)

    def step() -> None:
        model(**inputs).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def step_figures(run: TinyRun, rounds: int) -> dict[str, Figure]:
    """Steps of both models on the tiny run's first batch, and what their time goes to."""
    torch.manual_seed(0)
    batch = next(run.data.train_batches())
    ours, whole, peer = PathMoEForCausalLM(run.config), PathMoEForCausalLM(run.config), build_peer(run.config)
    steps = {
        "ours": training_step(ours, our_inputs(batch), run),
        "whole": training_step(whole, our_inputs(batch, return_logits=True), run),
        "peer": training_step(peer, peer_inputs(batch), run),
    }
    seconds = paired_seconds(steps, rounds)
    num_tokens = batch["input_ids"].numel()
    return {
        "tokens per step": num_tokens,
        "ours, tokens/s": num_tokens / statistics.median(seconds["ours"]),
        "peer, tokens/s": num_tokens / statistics.median(seconds["peer"]),
        "speed of ours over peer": ratio(seconds, "peer", "ours"),
        "the same with all logits at once, as the peer's": ratio(seconds, "peer", "whole"),
        **step_shares(steps, ours, peer, run, batch["shift_labels"], rounds),
    }


def lines_of(figures: Mapping[str, Figure]) -> list[str]:
    """A line a figure; a ratio is given as lower quartile, median and upper quartile."""
    lines = []
    for name, value in figures.items():
        numbers = value if isinstance(value, tuple) else (value,)
        lines.append(f"{name:<56}" + "  ".join(f"{x:,.2f}" if isinstance(x, float) else f"{x:,}" for x in numbers))
    return lines


def report(run: TinyRun, rounds: int, layers: Mapping[str, LayerShape]) -> list[str]:
    """All figures as lines: of the steps, and of MoE layers of the tiny run's shape and of `layers`."""
    tiny = LayerShape(run.config, run.data.micro_batch_size, run.data.manifest.sequence_length)
    lines = lines_of(step_figures(run, rounds))
    for name, shape in {"the tiny run's": tiny, **layers}.items():
        lines += ["", f"an MoE layer, {name} shape: {shape.described()}", *lines_of(layer_figures(shape, 3 * rounds))]
    return lines


def main() -> None:
    """Run the tests of what is timed, then time it, and print versions, commit and figures."""
    parser = OneLineParser(prog="python -m pathmoe.bench.step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="Rounds of steps that are timed.")
    rounds = parser.parse_args().rounds
    if rounds < 2:
        fail(f"--rounds ({rounds}) must be at least 2, for quartiles; raise it")
    tested = ("kernels", *(f"pathmoe/test_{name}.py" for name in ("olmoe", "experts", "moe", "losses")))
    run_tests(config_folder().parent, tested, ("-m", "not slow"))
    print(json.dumps(provenance(), indent=2))
    for line in report(tiny_run(), rounds, LAYERS):
        print(line)


if __name__ == "__main__":
    with_one_line_errors(main)
