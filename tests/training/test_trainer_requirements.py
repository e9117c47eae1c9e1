"""Trainer settings that would cut a step in two, or need what is not there."""

from typing import Any

import pytest
from lightning.pytorch import Trainer

from pathmoe.training.trainer_requirements import check_trainer


def trainer(**settings: Any) -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **settings)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_takes_precisions_without_a_loss_scale(precision: Any) -> None:
    check_trainer(trainer(precision=precision))


def test_refuses_half_precision() -> None:
    with pytest.raises(ValueError, match=r"^trainer\.precision \(16-true\) must be one of .*; use bf16-mixed"):
        check_trainer(trainer(precision="16-true"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"accumulate_grad_batches": 3},
        {"accumulate_grad_batches": 3, "val_check_interval": 6, "check_val_every_n_epoch": None},
        {"accumulate_grad_batches": 3, "limit_train_batches": 9},
    ],
)
def test_takes_intervals_of_whole_steps(settings: dict[str, Any]) -> None:
    check_trainer(trainer(**settings))


@pytest.mark.parametrize("value", [7, "00:00:10:00"])
def test_refuses_a_validation_within_a_step(value: Any) -> None:
    settings: dict[str, Any] = {"val_check_interval": value, "check_val_every_n_epoch": None}
    message = r"^trainer\.val_check_interval \(.*\) must be a multiple of trainer\.accumulate_grad_batches \(3\)"
    with pytest.raises(ValueError, match=message):
        check_trainer(trainer(accumulate_grad_batches=3, **settings))


def test_refuses_an_epoch_that_ends_within_a_step() -> None:
    with pytest.raises(ValueError, match=r"^trainer\.limit_train_batches \(7\) must be a multiple of .* \(3\)"):
        check_trainer(trainer(accumulate_grad_batches=3, limit_train_batches=7))
