"""`make bench-quality`: held-out bits per byte of the OLMoE peer, trained for as many seconds as a run of ours.

The peer gets the same data, order, batch, clipping, precision and schedule, and AdamW at the learning rates given.
"""

# Shapes: B batch, S sequence, V vocabulary.

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import OlmoeForCausalLM

from pathmoe.bench.peer import build_peer
from pathmoe.data import TokenDataModule
from pathmoe.training.errors import with_one_line_errors
from pathmoe.training.open_run import open_run, read_summary
from pathmoe.training.optim import OptimizerConfig, build_optimizer
from pathmoe.training.provenance import provenance
from pathmoe.training.schedule import ScheduleConfig, lr_factor

_RESOLUTION = 10_000
"""Parts that the time is cut into for the schedule, which counts steps."""


def peer_loss(model: OlmoeForCausalLM, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
    """Next-token cross-entropy of a batch, document-bounded like ours."""
    logits_BSV = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    return F.cross_entropy(logits_BSV.flatten(0, 1), batch["shift_labels"].flatten(), reduction=reduction)


def train_peer(
    model: OlmoeForCausalLM, data: TokenDataModule, seconds: float, lr: float, schedule: ScheduleConfig
) -> int:
    """Train for `seconds`, the schedule running over time; returns the number of steps."""
    optimizer = build_optimizer(model, OptimizerConfig(name="adamw", lr=lr))
    model.train()
    spent, steps = 0.0, 0
    for batch in data.train_batches():
        start = time.perf_counter()
        if spent >= seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(int(spent / seconds * _RESOLUTION), _RESOLUTION, schedule)
        peer_loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent, steps = spent + time.perf_counter() - start, steps + 1
    return steps


@torch.no_grad()
def bits_per_byte(model: OlmoeForCausalLM, data: TokenDataModule) -> float:
    """Over the whole validation split."""
    model.eval()
    nats, targets = 0.0, 0
    for batch in data.val_dataloader():
        nats += float(peer_loss(model, batch, reduction="sum"))
        targets += int((batch["shift_labels"] != -100).sum())
    return nats / targets / math.log(2) / data.bytes_per_target


def main() -> None:
    """Train the peer at each learning rate; print its figures beside those of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="runs/tiny-path_b4", help="Run folder to compare with.")
    parser.add_argument(
        "--lrs", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3], help="The peer's learning rates."
    )
    options = parser.parse_args()
    summary = read_summary(options.run, needed="val/bits_per_byte")
    model, data = open_run(options.run)
    seconds = summary["seconds"]
    print(json.dumps(provenance(), indent=2))
    print(f"ours: {summary['val/bits_per_byte']:.4f} bits per byte after {summary['steps']} steps, {seconds:.0f} s")
    # The same shape of schedule; the warm-up is a share of the time here.
    schedule = ScheduleConfig(name="wsd", warmup_steps=_RESOLUTION // 25, decay_fraction=0.4, min_lr_ratio=0.0)
    for lr in options.lrs:
        peer = build_peer(model.config)
        steps = train_peer(peer, data, seconds, lr, schedule)
        print(
            f"peer, lr {lr:g}: {bits_per_byte(peer, data):.4f} bits per byte after {steps} steps, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    with_one_line_errors(main)
