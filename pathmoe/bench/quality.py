"""`make bench-quality`: held-out bits per byte of the tiny run and of its OLMoE peer after equal training time.

All take turns, a step each, in one process: same data, order, batch, clipping, precision, optimizer and schedule. The
peer is trained at several learning rates, with and without its load-balancing loss.
"""

# Shapes: B batch, S sequence, V vocabulary.

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from pathmoe.bench.peer import build_peer, our_inputs, peer_inputs
from pathmoe.bench.tiny import TinyRun, tiny_run
from pathmoe.data import TokenDataModule
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.optim import OptimizerConfig, build_optimizer
from pathmoe.training.provenance import provenance
from pathmoe.training.schedule import lr_factor

Clock = Callable[[], float]


@dataclass
class Trainee:
    """A model in training, and what it has had so far."""

    model: PreTrainedModel
    inputs_of: Callable[[Mapping[str, Tensor]], dict[str, Tensor | bool]]
    optimizer: Optimizer
    batches: Iterator[Mapping[str, Tensor]]
    seconds: float = 0.0
    steps: int = 0
    peak_rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.model.train()


def scaled(config: OptimizerConfig, factor: float) -> OptimizerConfig:
    """The optimizer with both learning rates multiplied by `factor`."""
    return replace(config, lr=config.lr * factor, muon_lr=None if config.muon_lr is None else config.muon_lr * factor)


def trainees(
    run: TinyRun, factors: Sequence[float], coefficients: Sequence[float]
) -> tuple[Trainee, dict[tuple[float, float], Trainee]]:
    """Our model at the shipped rates, and peers by (balance loss coefficient, factor on the rates)."""
    torch.manual_seed(0)
    model = PathMoEForCausalLM(run.config)
    ours = Trainee(model, our_inputs, build_optimizer(model, run.optimizer), run.data.train_batches())
    peers = {}
    for coefficient in coefficients:
        for factor in factors:
            peer = build_peer(run.config, router_aux_loss_coef=coefficient)
            optimizer = build_optimizer(peer, scaled(run.optimizer, factor))
            peers[coefficient, factor] = Trainee(peer, peer_inputs, optimizer, run.data.train_batches())
    return ours, peers


def train_in_turns(everyone: Sequence[Trainee], run: TinyRun, seconds: float, clock: Clock = time.perf_counter) -> None:
    """Give each one `seconds` of training steps; the schedule runs over that time. Waiting for data is not counted."""
    while waiting := [trainee for trainee in everyone if trainee.seconds < seconds]:
        for trainee in waiting:
            batch = next(trainee.batches)
            start = clock()
            _step(trainee, batch, run, trainee.seconds / seconds)
            trainee.seconds += clock() - start


def _step(trainee: Trainee, batch: Mapping[str, Tensor], run: TinyRun, progress: float) -> None:
    factor = lr_factor(int(progress * run.max_steps), run.max_steps, run.schedule)
    for group, peak in zip(trainee.optimizer.param_groups, trainee.peak_rates, strict=True):
        group["lr"] = peak * factor
    trainee.model(**trainee.inputs_of(batch)).loss.backward()
    nn.utils.clip_grad_norm_(trainee.model.parameters(), run.gradient_clip_val)
    trainee.optimizer.step()
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.steps += 1


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, data: TokenDataModule) -> float:
    """Over the whole validation split, document-bounded."""
    model.eval()
    nats, targets = 0.0, 0
    for batch in data.val_dataloader():
        logits_BSV = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        nats += float(F.cross_entropy(logits_BSV.flatten(0, 1), batch["shift_labels"].flatten(), reduction="sum"))
        targets += int((batch["shift_labels"] != -100).sum())
    return nats / targets / math.log(2) / data.bytes_per_target


def report(run: TinyRun, seconds: float, factors: Sequence[float], coefficients: Sequence[float]) -> Iterator[str]:
    """Train them all, and give the lines of the table."""
    ours, peers = trainees(run, factors, coefficients)
    train_in_turns([ours, *peers.values()], run, seconds)
    yield f"{'model':<42}{'steps':>7}{'bits per byte':>15}"
    our_bits = bits_per_byte(ours.model, run.data)
    yield f"{'ours, shipped rates':<42}{ours.steps:>7,}{our_bits:>15.4f}"
    bits = {}
    for (coefficient, factor), peer in peers.items():
        bits[coefficient, factor] = bits_per_byte(peer.model, run.data)
        name = f"peer, rates x {factor:g}, balance loss {coefficient:g}"
        yield f"{name:<42}{peer.steps:>7,}{bits[coefficient, factor]:>15.4f}"
    best = min(bits, key=lambda setting: bits[setting])
    yield f"ours minus the best peer: {our_bits - bits[best]:+.4f} bits per byte"
    if best[1] in (min(factors), max(factors)):
        yield f"the best peer has the outermost rate (x {best[1]:g}): widen --factors to be fair to it"


def main() -> None:
    """Print versions and commit, then the table."""
    parser = OneLineParser(prog="python -m pathmoe.bench.quality", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--router", default="path_b4", help="Our router: a file of configs/routers.")
    parser.add_argument("--seconds", type=float, default=160.0, help="Training time of each model.")
    parser.add_argument(
        "--factors", nargs="+", type=float, default=[0.25, 0.5, 1.0, 2.0], help="On the shipped rates, for the peer."
    )
    parser.add_argument(
        "--coefficients", nargs="+", type=float, default=[0.0, 0.01], help="Of the peer's load-balancing loss."
    )
    options = parser.parse_args()
    for key, values in (("seconds", [options.seconds]), ("factors", options.factors)):
        for value in values:
            if not 0 < value < math.inf:
                fail(f"--{key} ({value}) must be above 0 and finite; change it")
    for value in options.coefficients:
        if not 0 <= value < math.inf:
            fail(f"--coefficients ({value}) must be at least 0 and finite; 0 leaves the loss out")
    print(json.dumps(provenance(), indent=2))
    for line in report(tiny_run(options.router), options.seconds, options.factors, options.coefficients):
        print(line, flush=True)


if __name__ == "__main__":
    with_one_line_errors(main)
