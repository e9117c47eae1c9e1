"""A run that goes on with another accumulation, or on other ranks, is the run that it would have been."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.checkpoint_io import AtomicCheckpointIO
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.loop_progress import recount_micro_batches
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig

GLOBAL_BATCH = 4
MODEL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


class Trace(Callback):
    """Losses by step and the steps that validations follow, into a file once the fit is over."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.losses: dict[int, float] = {}
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # Of the last micro-batch of a step, after which the figure is the step's.
        self.losses[trainer.global_step] = float(trainer.callback_metrics.get("train/loss", 0.0))

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.validated.append(trainer.global_step)

    def on_fit_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            torch.save({"losses": self.losses, "validated": self.validated}, self.file)


def fit(folder: Path, max_steps: int, accumulate: int, ranks: int = 1, *more: Callback, **options: Any) -> Any:
    """Losses and validations of a fit that goes on from the checkpoint in the folder, where there is one."""
    checkpoint = folder / "last.ckpt"
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_fork" if ranks > 1 else "auto",
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        callbacks=[Trace(folder / "trace.pt"), LastCheckpoint(checkpoint, 100), *more],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"limit_val_batches": 0, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0} | options,
    )
    module = PathMoEModule(PathMoEConfig(**MODEL), OptimizerConfig(lr=0.01), ScheduleConfig(name="constant"))
    data = TokenDataModule(
        source="c-functions",
        num_documents=40,
        vocab_size=300,
        sequence_length=32,
        micro_batch_size=GLOBAL_BATCH // accumulate // ranks,
    )
    ckpt_path = checkpoint if checkpoint.exists() else None
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return torch.load(folder / "trace.pt", weights_only=True)


needs_fork = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="forks, which CUDA does not survive"
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # accumulation, ranks
        ((1, 1), (2, 1)),
        ((4, 1), (1, 1)),
        pytest.param((1, 2), (2, 1), marks=needs_fork),
    ],
)
def test_another_cut_of_the_global_batch_trains_as_before(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    for folder in ("whole", "resumed"):
        (tmp_path / folder).mkdir()
    whole = fit(tmp_path / "whole", 9, *before)["losses"]
    fit(tmp_path / "resumed", 5, *before)
    resumed = fit(tmp_path / "resumed", 9, *after)["losses"]
    assert resumed.keys() - {5} == {6, 7, 8, 9}
    assert {step: resumed[step] for step in range(6, 10)} == pytest.approx(
        {step: whole[step] for step in range(6, 10)}, rel=1e-5
    )


def test_validations_stay_in_phase(tmp_path: Path) -> None:
    fit(tmp_path, 5, 1)
    # Every second step, as its micro-batches are counted from the beginning of the run.
    resumed = fit(tmp_path, 9, 2, val_check_interval=4, limit_val_batches=1)
    assert resumed["validated"] == [6, 8]


# It asks for a loader with a state, and ours begins at the step that the checkpoint is of.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_short_epochs_end_where_they_would_have(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = fit(tmp_path / "whole", 9, 1, limit_train_batches=3, max_epochs=-1)["losses"]
    fit(tmp_path, 5, 1, limit_train_batches=3, max_epochs=-1)
    resumed = fit(tmp_path, 9, 2, limit_train_batches=6, max_epochs=-1)["losses"]
    assert {step: resumed[step] for step in range(6, 10)} == pytest.approx(
        {step: whole[step] for step in range(6, 10)}, rel=1e-5
    )


class FailAndSave(Callback):
    """Fails within a step, and writes a checkpoint there, as Lightning's OnExceptionCheckpoint does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step, batch["micro_batch"]) == (3, 1):
            raise RuntimeError("stop")


@pytest.mark.parametrize("after", [2, 1])
def test_a_checkpoint_from_within_a_step_goes_on_at_its_beginning(tmp_path: Path, after: int) -> None:
    (tmp_path / "whole").mkdir()
    whole = fit(tmp_path / "whole", 6, 2)["losses"]
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, 6, 2, 1, FailAndSave(tmp_path / "last.ckpt"))
    resumed = fit(tmp_path, 6, after)["losses"]
    assert {step: resumed[step] for step in range(4, 7)} == pytest.approx(
        {step: whole[step] for step in range(4, 7)}, rel=1e-5
    )


@pytest.mark.parametrize(("pending", "completed"), [(0, 14), (1, 13)])
def test_a_count_is_rewritten_in_other_units(pending: int, completed: int) -> None:
    # Three epochs of two steps and one step of the fourth, of three micro-batches each.
    total = {"ready": 21, "started": 21, "processed": 21, "completed": 21 - pending}
    current = {"ready": 3, "started": 3, "processed": 3, "completed": 3 - pending}
    state = {"epoch_loop.batch_progress": {"total": total, "current": current, "is_last_batch": False}}
    recount_micro_batches(state, global_step=7, before=3, now=2)
    assert total == {"ready": 14, "started": 14, "processed": 14, "completed": completed}
    assert current == {"ready": 2, "started": 2, "processed": 2, "completed": completed - 12}
