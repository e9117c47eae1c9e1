import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pathmoe import PathMoEConfig
from pathmoe.bench.peer import build_peer
from pathmoe.bench.quality import bits_per_byte, report, train_in_turns, trainees
from pathmoe.bench.tiny import TinyRun
from pathmoe.data import TokenDataModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig, lr_factor


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    data = TokenDataModule(
        source="c-functions", num_documents=60, vocab_size=300, sequence_length=32, micro_batch_size=2,
        validation_fraction=0.2, cache_dir=str(tmp_path),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    config = PathMoEConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=8,
        num_experts=4, num_experts_per_tok=2, layers_per_router=2,
    )  # fmt: skip
    return TinyRun(
        config=config,
        optimizer=OptimizerConfig(name="muon", lr=1e-2, muon_lr=2e-2),
        schedule=ScheduleConfig(name="wsd", warmup_steps=2, decay_fraction=0.5, min_lr_ratio=0.0),
        max_steps=40,
        gradient_clip_val=1.0,
        data=data,
    )


def test_bits_per_byte_of_a_uniform_model_are_known(run: TinyRun) -> None:
    peer = build_peer(run.config)
    with torch.no_grad():
        peer.lm_head.weight.zero_()
    # A head of zeros is uniform over the vocabulary, whatever else the model does.
    uniform = math.log2(300) / run.data.bytes_per_target
    assert bits_per_byte(peer, run.data) == pytest.approx(uniform, rel=1e-5)


def test_everyone_gets_the_same_time_and_follows_the_schedule_over_it(run: TinyRun) -> None:
    ours, peers = trainees(run, factors=[0.5], coefficients=[0.0])
    peer = peers[0.0, 0.5]
    assert peer.peak_rates == [rate / 2 for rate in ours.peak_rates]
    # The clock is read before and after a step, of ours first: 1 second for ours, 3 for the peer.
    durations = itertools.cycle((1.0, 3.0))

    def ticks() -> Iterator[float]:
        while True:
            yield 0.0
            yield next(durations)

    clock = ticks()
    train_in_turns([ours, peer], run, seconds=12.0, clock=lambda: next(clock))
    assert peer.steps == 4 and peer.seconds == 12
    # While the peer trains ours takes every other turn; alone, it meets the durations of both.
    assert ours.seconds >= 12 and ours.steps == 8
    last = lr_factor(int(9 / 12 * run.max_steps), run.max_steps, run.schedule)
    assert [group["lr"] for group in peer.optimizer.param_groups] == [rate * last for rate in peer.peak_rates]


def test_report_trains_and_scores_all(run: TinyRun) -> None:
    lines = list(report(run, seconds=0.01, factors=[1.0, 2.0], coefficients=[0.0, 0.01]))
    assert len(lines) == 1 + 1 + 4 + 2
    rows = [float(line.split()[-1]) for line in lines[1:6]]
    difference = float(lines[6].split()[-4])
    assert difference == pytest.approx(rows[0] - min(rows[1:]), abs=2e-4)
    # With two factors either is the outermost.
    assert "widen --factors" in lines[7]


@pytest.mark.parametrize(("flag", "value"), [("--seconds", "0"), ("--factors", "-1"), ("--coefficients", "-1")])
def test_bad_flags_end_in_one_line(flag: str, value: str) -> None:
    command = [sys.executable, "-m", "pathmoe.bench.quality", flag, value]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {flag} (") and ended.stderr.count("\n") == 1
