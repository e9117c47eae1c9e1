"""Trainer settings that would cut a step in two, or need what is not there."""

import json
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from pathmoe.config import PathMoEConfig
from pathmoe.training.module import PathMoEModule
from pathmoe.training.sharded_strategy import ShardedStrategy
from pathmoe.training.speed import SpeedMonitor
from pathmoe.training.trainer_requirements import (
    check_accelerator,
    check_callbacks,
    check_optimizer,
    check_strategy,
    check_trainer,
)


def trainer(**settings: Any) -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **settings)


@pytest.mark.parametrize("accelerator", ["auto", "cpu", CPUAccelerator()])
def test_takes_accelerators_that_are_there(accelerator: Any) -> None:
    check_accelerator(accelerator)


def test_names_the_accelerators_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for accelerator, is_available in ((CUDAAccelerator, True), (MPSAccelerator, False), (XLAAccelerator, False)):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda available=is_available: available))
    check_accelerator("gpu")
    message = r"^trainer\.accelerator \(tpu\) must be one of auto, cpu, cuda, gpu on this machine; change it$"
    with pytest.raises(ValueError, match=message):
        check_accelerator("tpu")


def test_refuses_two_callbacks_whose_states_a_checkpoint_would_mix_up() -> None:
    check_callbacks([SpeedMonitor(), LearningRateMonitor(), LearningRateMonitor()])
    message = r"^trainer\.callbacks \(2 of SpeedMonitor\) must hold one; leave out a --config that adds it$"
    with pytest.raises(ValueError, match=message):
        check_callbacks([SpeedMonitor(), LearningRateMonitor(), SpeedMonitor()])


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


@pytest.mark.parametrize("value", [1, 7, "00:00:10:00"])
def test_refuses_a_validation_within_a_step(value: Any) -> None:
    settings: dict[str, Any] = {"val_check_interval": value, "check_val_every_n_epoch": None}
    message = r"^trainer\.val_check_interval \(.*\) must be a multiple of trainer\.accumulate_grad_batches \(3\)"
    with pytest.raises(ValueError, match=message):
        check_trainer(trainer(accumulate_grad_batches=3, **settings))


def test_refuses_an_epoch_that_ends_within_a_step() -> None:
    with pytest.raises(ValueError, match=r"^trainer\.limit_train_batches \(7\) must be a multiple of .* \(3\)"):
        check_trainer(trainer(accumulate_grad_batches=3, limit_train_batches=7))


def test_refuses_a_validation_every_so_many_epochs() -> None:
    check_trainer(trainer(check_val_every_n_epoch=1))
    message = r"^trainer\.check_val_every_n_epoch \(2\) must be null or 1, .*; set trainer\.val_check_interval$"
    with pytest.raises(ValueError, match=message):
        check_trainer(trainer(check_val_every_n_epoch=2))


@pytest.mark.parametrize("strategy", ["auto", "ddp", "ddp_find_unused_parameters_true"])
def test_takes_one_device_and_ddp(strategy: str) -> None:
    check_strategy(trainer(strategy=strategy))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_takes_ours_for_fsdp2_in_two_precisions(precision: Any) -> None:
    check_strategy(trainer(strategy=ShardedStrategy(), precision=precision))


def test_refuses_what_ours_does_not_shard() -> None:
    with pytest.raises(
        ValueError, match=r"^trainer\.precision \(bf16-true\) must be 32-true or bf16-mixed under Sharded"
    ):
        check_strategy(trainer(strategy=ShardedStrategy(), precision="bf16-true"))
    with pytest.raises(
        ValueError, match=r"^model\.optimizer\.name \(muon\) must be adamw under ShardedStrategy, since"
    ):
        check_optimizer("ShardedStrategy", "muon")
    check_optimizer("ShardedStrategy", "adamw")
    check_optimizer("DDPStrategy", "muon")


class LikeDeepSpeed(DDPStrategy):
    """A strategy that shards, of a type derived from DDP's."""


@pytest.mark.parametrize("strategy", [ModelParallelStrategy, LikeDeepSpeed])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_refuses_other_strategies_that_shard(strategy: type, stage: str) -> None:
    module = PathMoEModule(PathMoEConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1))
    module.trainer = trainer(strategy=strategy())
    with pytest.raises(ValueError, match=rf"^trainer\.strategy \({strategy.__name__}\) must be auto, ddp or .*;"):
        module.setup(stage)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_command_line_refuses_them_before_it_starts_other_processes(
    command: str, command_line: Any, mini: Any, finished_run: Any
) -> None:
    given = {"fit": ["--config", "tiny", "--config", mini], "validate": ["--ckpt_path", finished_run.folder]}
    strategy = json.dumps({"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"})
    ended = command_line(command, *given[command], "--trainer.strategy", strategy, "--trainer.devices", "2")
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("error: trainer.strategy (ModelParallelStrategy) must be auto, ddp or ")
