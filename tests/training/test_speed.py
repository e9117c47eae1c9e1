"""Counting tokens and time, and what utilisation is measured against."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pathmoe.config import PathMoEConfig
from pathmoe.counts import flops_per_token
from pathmoe.data import TokenDataModule
from pathmoe.training.checkpoint_io import AtomicCheckpointIO
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.schedule import ScheduleConfig
from pathmoe.training.speed import SpeedMonitor, peak_flops_per_second

CONFIG = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


class Clock:
    """A clock that only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Run:
    """The hooks in the order in which Lightning calls them."""

    def __init__(self, clock: Clock, accumulate: int = 1, log_every_n_steps: int = 1) -> None:
        self.clock = clock
        self.monitor = SpeedMonitor()
        self.monitor._peak_flops = 1e9
        self.trainer: Any = SimpleNamespace(
            world_size=2,
            accumulate_grad_batches=accumulate,
            log_every_n_steps=log_every_n_steps,
            global_step=0,
            precision="32-true",
        )
        self.logged: list[dict[str, float]] = []
        self.module: Any = SimpleNamespace(
            config=PathMoEConfig(**CONFIG),
            device=torch.device("cpu"),
            log_dict=lambda figures: self.logged.append({name: value.item() for name, value in figures.items()}),
        )

    def step(self, waiting: float, seconds: float) -> None:
        for micro_batch in range(self.trainer.accumulate_grad_batches):
            batch = {"input_ids": torch.zeros(3, 10), "micro_batch": micro_batch}
            self.clock.now += waiting
            self.monitor.on_train_batch_start(self.trainer, self.module, batch, 0)
            self.clock.now += seconds
            self.trainer.global_step += micro_batch + 1 == self.trainer.accumulate_grad_batches
            self.monitor.on_train_batch_end(self.trainer, self.module, None, batch, 0)


def test_speed_counts_waiting_for_data_and_neither_validation_nor_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Clock(monkeypatch))
    run.step(waiting=50, seconds=2)  # the first batch is there when training starts
    assert run.logged[-1]["train/tokens_per_second"] == pytest.approx(2 * 30 / 2)
    run.step(waiting=1, seconds=2)
    assert run.logged[-1]["train/tokens_per_second"] == pytest.approx(2 * 30 / 3)
    run.monitor.on_validation_start(run.trainer, run.module)
    run.step(waiting=1000, seconds=2)
    run.monitor.on_save_checkpoint(run.trainer, run.module, {})
    run.step(waiting=1000, seconds=2)
    assert [row["train/tokens_per_second"] for row in run.logged[-2:]] == pytest.approx([30, 30])
    assert [row["train/tokens"] for row in run.logged] == [60, 120, 180, 240]
    assert run.monitor.seconds == pytest.approx(2 + 3 + 2 + 2)
    flops = flops_per_token(run.module.config, 10).training
    assert run.logged[-1]["train/mfu"] == pytest.approx(30 * flops / 1e9)


def test_a_pause_is_no_training_before_or_after_the_step_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Clock(monkeypatch))
    run.step(waiting=0, seconds=2)
    with run.monitor.paused():
        run.clock.now += 100
    batch = {"input_ids": torch.zeros(3, 10), "micro_batch": 0}
    run.monitor.on_train_batch_start(run.trainer, run.module, batch, 0)
    run.clock.now += 3
    assert run.monitor.seconds_so_far == pytest.approx(2 + 3)
    with pytest.raises(KeyError), run.monitor.paused():
        run.clock.now += 100
        raise KeyError
    assert run.monitor.seconds_so_far == pytest.approx(2 + 3)
    run.monitor.on_train_batch_end(run.trainer, run.module, None, batch, 0)
    assert run.monitor.seconds == run.monitor.seconds_so_far == pytest.approx(2 + 3)
    assert [row["train/tokens_per_second"] for row in run.logged] == pytest.approx([2 * 30 / 2, 2 * 30 / 3])
    run.monitor.on_validation_start(run.trainer, run.module)
    with run.monitor.paused():
        run.clock.now += 100
    assert run.monitor.seconds_so_far == pytest.approx(2 + 3)


def test_a_row_covers_the_micro_batches_and_steps_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Clock(monkeypatch), accumulate=2, log_every_n_steps=3)
    for step in range(6):
        run.step(waiting=0, seconds=step + 1)
    assert [row["train/tokens"] for row in run.logged] == [360, 720]
    speeds = [row["train/tokens_per_second"] for row in run.logged]
    assert speeds == pytest.approx([360 / (2 * (1 + 2 + 3)), 360 / (2 * (4 + 5 + 6))])
    # Each step has two micro-batches.
    assert [row["train/step_seconds"] for row in run.logged] == pytest.approx([2 * 2, 2 * 5])


def test_large_counts_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Clock(monkeypatch))
    run.monitor.tokens = 2**40
    run.step(waiting=0, seconds=1)
    assert run.logged[-1]["train/tokens"] == 2**40 + 60


def test_wall_time_is_all_of_it_also_over_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    first, second = Run(clock), Run(clock)
    first.monitor.on_train_start(first.trainer, first.module)
    first.step(waiting=1, seconds=2)
    clock.now += 30  # a validation
    saved = first.monitor.state_dict()
    clock.now += 1000  # killed, and started again later
    second.monitor.load_state_dict(saved)
    assert second.monitor.wall_seconds == pytest.approx(1 + 2 + 30)
    second.monitor.on_train_start(second.trainer, second.module)
    second.step(waiting=1, seconds=2)
    assert second.monitor.wall_seconds == pytest.approx(1 + 2 + 30 + 1 + 2)


class Totals(Callback):
    def __init__(self) -> None:
        self.totals: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        monitor = next(callback for callback in trainer.callbacks if isinstance(callback, SpeedMonitor))
        self.totals.append((monitor.tokens, monitor.seconds))


def fit(folder: Path, max_steps: int, ckpt_path: Path | None = None) -> list[tuple[int, float]]:
    totals = Totals()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        limit_val_batches=0,
        callbacks=[SpeedMonitor(), totals, LastCheckpoint(folder / "last.ckpt", 10)],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = PathMoEModule(PathMoEConfig(**CONFIG), schedule=ScheduleConfig(name="constant"))
    data = TokenDataModule(
        source="c-functions", num_documents=120, vocab_size=300, sequence_length=32, micro_batch_size=2
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return totals.totals


def test_totals_go_on_after_a_resume(tmp_path: Path) -> None:
    first = fit(tmp_path, 3)
    second = fit(tmp_path, 5, tmp_path / "last.ckpt")
    assert [tokens for tokens, _ in first + second] == [64 * (step + 1) for step in range(5)]
    seconds = [seconds for _, seconds in first + second]
    assert seconds == sorted(seconds)


def test_the_peak_is_the_one_that_is_given_and_is_nobodys_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops_per_second(torch.device("cpu"), torch.bfloat16) is None
    clock = Clock(monkeypatch)
    unknown, given = Run(clock), Run(clock)
    given.monitor.peak_tflops = 5e-3
    for run in (unknown, given):
        run.monitor.on_train_start(run.trainer, run.module)
        run.step(waiting=0, seconds=2)
    assert "train/mfu" not in unknown.logged[0]
    flops = flops_per_token(given.module.config, 10).training
    assert given.logged[0]["train/mfu"] == pytest.approx(30 * flops / (2 * 5e9)), "of both ranks"


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4e12), ("NVIDIA B200", 2250e12), ("AMD Instinct MI300X", 1307.4e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_gpu_is_that_of_dense_products(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops_per_second(torch.device("cuda", 0), torch.bfloat16) == peak
    if name == "NVIDIA H200":
        assert peak_flops_per_second(torch.device("cuda", 0), torch.float32) is None


@pytest.mark.parametrize("peak", [0.0, -1.0])
def test_a_peak_that_is_none_is_refused(peak: float) -> None:
    with pytest.raises(ValueError, match=rf"^--peak_tflops \({peak}\) must be above 0; give the data sheet's"):
        SpeedMonitor(peak)


def test_the_highest_memory_outlives_a_count_that_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([5, 9, 2])
    monkeypatch.setattr("pathmoe.training.speed.peak_memory_bytes", lambda _: next(counts))
    monitor = SpeedMonitor()
    assert [monitor.peak_memory_bytes(torch.device("cpu")) for _ in range(3)] == [5, 9, 9]
