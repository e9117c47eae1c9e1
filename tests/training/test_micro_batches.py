"""Micro-batches that follow from the global batch, and validation counted in optimizer steps."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from pathmoe.training.micro_batches import micro_batches_per_step, settle_micro_batches, settled_trainer_settings
from tests.training.conftest import CommandLine

ROOT = Path(__file__).resolve().parents[2]
NOTHING_GIVEN = {"accumulate_grad_batches": 1, "val_check_interval": None}


@given(micro_batch_size=st.integers(1, 9), ranks=st.integers(1, 9), steps=st.integers(1, 9))
def test_the_global_batch_is_what_is_asked_for(micro_batch_size: int, ranks: int, steps: int) -> None:
    found = micro_batches_per_step(1, micro_batch_size, steps * micro_batch_size * ranks, ranks)
    assert found == steps


@pytest.mark.parametrize(
    ("given_number", "global_batch_size"), [(3, 64), (3, None), (1, None), (1, 7)], ids=["chosen", "", "alone", "odd"]
)
def test_what_is_left_as_it_is(given_number: int, global_batch_size: int | None) -> None:
    assert micro_batches_per_step(given_number, 4, global_batch_size, 2) == given_number


def test_validations_are_counted_in_steps() -> None:
    settings = {**NOTHING_GIVEN, "max_steps": 9}
    settled = settled_trainer_settings(settings, 4, 64, 2, validate_every_n_steps=10)
    assert settled == {"accumulate_grad_batches": 8, "val_check_interval": 80, "max_steps": 9}
    assert settled_trainer_settings(settings, 4, 64, 2, None)["val_check_interval"] is None


@pytest.mark.parametrize(
    ("interval", "every_n_steps", "message"),
    [
        (None, 0, r"^validate_every_n_steps \(0\) must be at least 1; raise it$"),
        (6, 5, r"^validate_every_n_steps \(5\) must be null where trainer\.val_check_interval \(6\) says the same in "),
        ("a duration", 5, r"^validate_every_n_steps \(5\) must be null where .* \(a duration\) says .* to null$"),
    ],
)
def test_refuses_two_intervals_and_none(interval: Any, every_n_steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settled_trainer_settings({**NOTHING_GIVEN, "val_check_interval": interval}, 4, None, 1, every_n_steps)


@pytest.mark.parametrize("interval", [None, 1.0, 7])
def test_a_trainer_that_is_built(interval: Any) -> None:
    trainer = Trainer(accelerator="cpu", devices=2, num_nodes=3, logger=False, val_check_interval=interval)
    settle_micro_batches(trainer, 2, 48, None)
    assert (trainer.accumulate_grad_batches, trainer.val_check_interval) == (4, interval or 1.0)
    if interval != 7:
        settle_micro_batches(trainer, 2, 48, 5)
        assert (trainer.accumulate_grad_batches, trainer.val_check_interval) == (4, 20)


def test_the_command_line_follows_the_global_batch(fit: CommandLine, tmp_path: Path) -> None:
    flags = ["--data.global_batch_size", "6", "--validate_every_n_steps", "3", "--trainer.val_check_interval", "null"]
    run = tmp_path / "run"
    ended = fit(*flags, "--trainer.max_steps", "7", "--run_dir", run)
    assert (ended.status, ended.err) == (0, "")
    rows = (run / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    place = {name: number for number, name in enumerate(rows[0].split(","))}
    validated = [row.split(",")[place["step"]] for row in rows[1:] if row.split(",")[place["val/loss"]]]
    assert validated == ["2", "5", "6"], "and once more at the end"
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert state["pathmoe"]["accumulate_grad_batches"] == 3
    assert "accumulate_grad_batches: 1\n" in (run / "config.yaml").read_text(), "so that it follows on other ranks too"


def test_a_global_batch_that_does_not_fit_is_refused(fit: CommandLine) -> None:
    for flags in (["7"], ["8", "--trainer.accumulate_grad_batches", "3"]):
        ended = fit("--data.global_batch_size", *flags)
        assert ended.status == 2
        assert ended.err.startswith(
            f"error: data.global_batch_size ({flags[0]}) must equal data.micro_batch_size (2) x"
        )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="starts processes that talk over gloo")
def test_it_goes_on_under_a_launcher_with_other_ranks(fit: CommandLine, mini: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    batch = ["--data.global_batch_size", "8", "--validate_every_n_steps", "2", "--trainer.val_check_interval", "null"]
    assert fit(*batch, "--run_dir", run).status == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = ["--config", "ddp", "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.max_steps", "6"]
    command = [*launch, str(ROOT / "train.py"), "fit", *more, "--ckpt_path", str(run)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert (state["global_step"], state["pathmoe"]["accumulate_grad_batches"]) == (6, 2)
    assert json.loads((run / "provenance.json").read_text())
