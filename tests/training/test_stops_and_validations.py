"""What is saved, and when, where a run is told to stop while a validation is due or under way."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pathmoe.training.checkpoint_io import saved_step
from pathmoe.training.stop_signals import Stopped
from tests.training.test_last_checkpoint import Signal, fit


class DuringValidation(Callback):
    """What is saved while validations of training run, and a signal in that of a step."""

    def __init__(self, path: Path, signal_at: int | None = None) -> None:
        self.path = path
        self.signal_at = signal_at
        self.saved: list[int | None] = []

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            return
        self.saved.append(saved_step(self.path) if self.path.exists() else None)
        if trainer.global_step == self.signal_at:
            signal.raise_signal(signal.SIGTERM)


def test_a_step_is_safe_before_the_validation_that_a_stop_waits_for(tmp_path: Path) -> None:
    validation = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    during = DuringValidation(tmp_path / "last.ckpt")
    with pytest.raises(Stopped):
        fit(tmp_path, 9, 9, Signal(signal.SIGTERM, step=3), during, **validation)
    assert during.saved == [None, 4]
    assert saved_step(tmp_path / "last.ckpt") == 4


def test_a_signal_in_a_validation_stops_at_its_end(tmp_path: Path) -> None:
    validation = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, 9, 9, DuringValidation(tmp_path / "last.ckpt", signal_at=4), **validation)
    assert stopped.value.line == "stopped at step 4; go on with the same command and --ckpt_path last"
    _, module = fit(tmp_path, 9, 6, resume=True, **validation)
    _, whole = fit(tmp_path / "whole", 9, 6, **validation)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in module.state_dict().items())
