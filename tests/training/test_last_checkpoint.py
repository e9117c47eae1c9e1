"""When the last checkpoint is written, and what it holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from pathmoe.training.last_checkpoint import LastCheckpoint, last_good_checkpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.schedule import ScheduleConfig

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


class Count(Callback):
    """State that a checkpoint keeps, and the moments at which one was written."""

    def __init__(self) -> None:
        self.steps_seen = 0
        self.validations = 0
        self.written: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps_seen = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.validations += 1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.written.append((trainer.global_step, self.validations))

    def state_dict(self) -> dict[str, Any]:
        return {"steps_seen": self.steps_seen, "validations": self.validations}


def fit(folder: Path, every_n_steps: int, max_steps: int, **options: Any) -> tuple[Count, PathMoEModule]:
    count = Count()
    last = LastCheckpoint(folder / "last.ckpt", every_n_steps)
    settings = {"limit_val_batches": 0, "num_sanity_val_steps": 1} | options
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        callbacks=[last, count],  # Lightning puts the checkpoint last itself
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    module = PathMoEModule(PathMoEConfig(**SHAPE), schedule=ScheduleConfig(name="constant"))
    data = TokenDataModule(
        source="c-functions", num_documents=120, vocab_size=300, sequence_length=32, micro_batch_size=2
    )
    trainer.fit(module, datamodule=data)
    return count, module


@pytest.mark.parametrize(
    ("every_n_steps", "max_steps", "steps"), [(3, 7, [3, 6, 7]), (3, 6, [3, 6]), (10, 4, [4]), (1, 2, [1, 2])]
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_so_many_steps_and_after_the_last(
    tmp_path: Path, every_n_steps: int, max_steps: int, steps: list[int], accumulate: int
) -> None:
    count, module = fit(tmp_path, every_n_steps, max_steps, accumulate_grad_batches=accumulate)
    assert [step for step, _ in count.written] == steps
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    saved = read_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == max_steps
    assert all(torch.equal(value, saved["state_dict"][name]) for name, value in module.state_dict().items())


def test_other_callbacks_have_seen_the_step(tmp_path: Path) -> None:
    fit(tmp_path, 2, 4)
    assert read_checkpoint(tmp_path / "last.ckpt")["callbacks"]["Count"]["steps_seen"] == 4


def test_where_a_validation_follows_it_is_in_the_checkpoint(tmp_path: Path) -> None:
    validation = {"limit_val_batches": 1, "val_check_interval": 4, "check_val_every_n_epoch": None}
    count, _ = fit(tmp_path, 1, 5, accumulate_grad_batches=2, **validation)
    # Validations (after the sanity check's) follow steps 2 and 4.
    assert count.written == [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)]


def test_no_checkpoint_follows_a_validation_that_is_not_at_its_step(tmp_path: Path) -> None:
    validation = {"limit_val_batches": 1, "val_check_interval": 1, "check_val_every_n_epoch": None}
    count, _ = fit(tmp_path, 3, 4, **validation)
    assert count.written == [(3, 4), (4, 5)]


def test_an_interval_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--checkpoint_every_n_steps \(0\) must be at least 1"):
        LastCheckpoint(tmp_path / "last.ckpt", 0)


def test_the_last_good_checkpoint_is_named_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    quiet = {"logger": False, "enable_checkpointing": True, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[LastCheckpoint(path, 1)], **quiet)
    assert "no checkpoint yet" in last_good_checkpoint(trainer)
    path.touch()
    assert last_good_checkpoint(trainer) == f"go on from the last good checkpoint with --ckpt_path {path}"
    assert "no checkpoint yet" in last_good_checkpoint(Trainer(accelerator="cpu", devices=1, logger=False))
