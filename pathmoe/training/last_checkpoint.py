"""Callback that keeps the run's last checkpoint."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Replaces one file every so many optimizer steps, and after the last one.

    A `ModelCheckpoint` would leave out the last steps, or save them once the epoch is over, from where Lightning does
    not go on as it would have. As a `Checkpoint` it runs after all other callbacks, so that their state is in the file.

    Args:
        path: the file, or the folder of a sharded checkpoint.
        every_n_steps: optimizer steps between checkpoints.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"--checkpoint_every_n_steps ({every_n_steps}) must be at least 1; raise it")
        self.path = path
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step is complete."""
        step = trainer.global_step
        complete = batch["micro_batch"] + 1 == trainer.accumulate_grad_batches
        if complete and (step % self.every_n_steps == 0 or step == trainer.max_steps):
            trainer.save_checkpoint(self.path)
