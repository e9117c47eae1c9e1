"""What is told of the ranks: figures by their definition, and a rank that is really slow by its name."""

import csv
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.module import PathMoEModule
from pathmoe.training.rank_monitor import FetchTimer, RankMonitor, RankReading, rank_figures
from pathmoe.training.schedule import ScheduleConfig
from pathmoe.training.speed import SpeedMonitor

OF_SEVERAL = {f"speed/{name}" for name in ("straggler_seconds", "slowest_rank")} | {
    f"speed/own_seconds_{which}" for which in ("min", "median", "max")
}
FORKS = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive"
)
SLEEP = 0.3


def test_figures_follow_their_definition() -> None:
    own = [0.5, 0.25, 1.5, 0.75]
    data = [0.1, 0.0, 0.25, 0.0]
    readings = [
        RankReading(own[rank], data[rank], (rank + 1) * 2**30, (4 - rank) * 2**30, (5 - rank) * 2**30)
        for rank in range(4)
    ]
    assert rank_figures(readings, step_seconds=2.0) == {
        "speed/data_wait_share": 0.125,
        "speed/host_memory_gib": 4.0,
        "speed/device_memory_gib": 4.0,
        "speed/device_reserved_gib": 5.0,
        "speed/own_seconds_min": 0.25,
        "speed/own_seconds_median": 0.5,
        "speed/own_seconds_max": 1.5,
        "speed/straggler_seconds": 1.0,
        "speed/slowest_rank": 2,
    }


def test_one_rank_has_nobody_to_wait_for_and_a_cpu_no_memory() -> None:
    figures = rank_figures([RankReading(0.5, 0.5, 2**29, 0, 0)], step_seconds=1.0)
    assert figures == {"speed/data_wait_share": 0.5, "speed/host_memory_gib": 0.5}


def test_only_the_fetches_of_training_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    timer = FetchTimer()
    actions = {
        "[_TrainingEpochLoop].train_dataloader_next": 2,
        "run_training_batch": 3,
        "[_EvaluationLoop].val_next": 5,
    }
    for action, seconds in actions.items():
        with timer.profile(action):
            now += seconds
    assert timer.seconds == 2


class SlowLoader:
    """The blocks of training, each of which takes its time."""

    def __init__(self, loader: Any, seconds: float) -> None:
        self.loader = loader
        self.seconds = seconds

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            time.sleep(self.seconds)
            yield batch


class SlowData(TokenDataModule):
    """Data that one rank has to wait for."""

    slow_rank: int | None = None

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        return SlowLoader(loader, SLEEP) if self.trainer.global_rank == self.slow_rank else loader


class SlowForward(Callback):
    """Forwards that take one rank long."""

    def __init__(self, slow_rank: int) -> None:
        self.slow_rank = slow_rank

    def on_train_start(self, trainer: Trainer, pl_module: PathMoEModule) -> None:
        if trainer.global_rank == self.slow_rank:
            pl_module.model.model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(SLEEP))


class ProfilerOfTheRun(Callback):
    """What the loop tells of its actions."""

    def on_train_end(self, trainer: Trainer, pl_module: PathMoEModule) -> None:
        self.profiler = trainer.profiler


def fit(
    folder: Path,
    source: Path,
    *callbacks: Callback,
    slow_data: int | None = None,
    fields: dict[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, float]]:
    """Rows of the log."""
    shape: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    speed = SpeedMonitor()
    trainer = Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_steps": 4, "log_every_n_steps": 2} | options,
        limit_val_batches=0,
        callbacks=[*callbacks, speed, RankMonitor(speed)],
        logger=CSVLogger(folder, name=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = SlowData(source=str(source), vocab_size=300, sequence_length=32, micro_batch_size=2)
    data.slow_rank = slow_data
    trainer.fit(PathMoEModule(PathMoEConfig(**shape | (fields or {})), schedule=ScheduleConfig(name="constant")), data)
    with (folder / "version_0" / "metrics.csv").open() as lines:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(lines)]


TWO = {"devices": 2, "strategy": "ddp_fork"}


@FORKS
@pytest.mark.parametrize("slow_rank", [0, 1])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_rank_with_slow_forwards_is_named(
    slow_rank: int, accumulate: int, tmp_path: Path, short_documents: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = SlowForward(slow_rank)
    rows = fit(tmp_path, short_documents, slow, **TWO, accumulate_grad_batches=accumulate)
    assert len(rows) == 2
    for row in rows:
        assert row["speed/slowest_rank"] == slow_rank
        assert row["speed/own_seconds_max"] >= accumulate * SLEEP
        assert row["speed/own_seconds_min"] == row["speed/own_seconds_median"] < accumulate * SLEEP
        assert row["speed/straggler_seconds"] == row["speed/own_seconds_max"] - row["speed/own_seconds_median"]
        # All ranks take as long as the slowest, which is why steps tell nothing.
        assert row["train/step_seconds"] >= row["speed/own_seconds_max"]
        assert row["speed/data_wait_share"] < 0.5
    out = capfd.readouterr().out
    assert out.count(f"rank {slow_rank} on {socket.gethostname()} is slow: the others wait ") == 1
    assert out.count("is slow") == 1


@FORKS
@pytest.mark.parametrize("fields", [{}, {"router_aux_loss_coef": 0.1, "router_aux_loss_scope": "global_batch"}])
def test_a_rank_that_waits_for_its_data_is_named_whatever_its_forwards_do(
    fields: dict[str, Any], tmp_path: Path, short_documents: Path
) -> None:
    warm_up, row = fit(tmp_path, short_documents, slow_data=1, fields=fields, **TWO)
    assert warm_up["speed/slowest_rank"] == row["speed/slowest_rank"] == 1
    assert row["speed/data_wait_share"] * row["train/step_seconds"] >= SLEEP
    assert row["speed/straggler_seconds"] > SLEEP / 2


@FORKS
def test_what_is_no_ranks_own_is_not_held_against_it(tmp_path: Path, short_documents: Path) -> None:
    fields = {"router_aux_loss_coef": 0.1, "router_aux_loss_scope": "global_batch"}
    for row in fit(tmp_path, short_documents, SlowForward(1), fields=fields, **TWO):
        assert row["train/step_seconds"] > SLEEP
        assert row["speed/own_seconds_max"] < SLEEP, "its forwards, in which ranks wait for each other, do not count"


def test_on_one_rank_the_wait_for_data_is_that_of_the_loop(tmp_path: Path, short_documents: Path) -> None:
    first, *others = rows = fit(tmp_path, short_documents, slow_data=0, log_every_n_steps=1)
    assert first["speed/data_wait_share"] == 0, "time begins with the first batch"
    assert all(SLEEP / row["train/step_seconds"] <= row["speed/data_wait_share"] < 1 for row in others)
    assert all(row.keys().isdisjoint(OF_SEVERAL) for row in rows)


def test_a_profiler_of_the_users_stays(tmp_path: Path, short_documents: Path) -> None:
    seen, profiler = ProfilerOfTheRun(), SimpleProfiler()
    rows = fit(tmp_path, short_documents, seen, profiler=profiler)
    assert seen.profiler is profiler
    assert all("train/step_seconds" in row and "speed/data_wait_share" not in row for row in rows)
