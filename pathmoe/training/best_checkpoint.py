"""Callback that keeps the run's best checkpoint."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from pathmoe.training.background_saves import BackgroundSaves
from pathmoe.training.checkpoint_names import SaveOptions


class BestCheckpoint(Checkpoint):
    """Replaces one file after each validation whose `val/loss` is lower than all before, a resumed run's included.

    A `ModelCheckpoint` forgets the best loss once the folder of the run has been moved.

    Args:
        path: the checkpoint.
        background: where it is written while training goes on; None waits for it.
    """

    def __init__(self, path: Path, background: BackgroundSaves | None = None) -> None:
        self.path = path
        self.background = background
        self.loss = math.inf

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where the loss is a new lowest one."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        loss = float(trainer.callback_metrics["val/loss"])
        if loss < self.loss:
            self.loss = loss
            options = SaveOptions(background=self.background) if self.background else None
            trainer.save_checkpoint(self.path, storage_options=options)

    def state_dict(self) -> dict[str, Any]:
        """The lowest loss so far."""
        return {"loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's lowest loss, where the file that has it is there."""
        if self.path.exists():
            self.loss = state_dict["loss"]
