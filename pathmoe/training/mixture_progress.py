"""Callback that logs how much of each source of a mixture a run has read."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class MixtureProgress(Callback):
    """Logs `data/<source>/tokens` and `data/<source>/epochs` since the beginning of the run; nothing for one source.

    Both follow from the number of the step, so that a resumed run goes on counting.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log with the figures of the step, at the trainer's interval."""
        manifest = trainer.datamodule.manifest
        is_step_done = batch["micro_batch"] + 1 == trainer.accumulate_grad_batches
        if not manifest.mixture or not is_step_done or trainer.global_step % trainer.log_every_n_steps:
            return
        blocks = trainer.datamodule.blocks_read(batch["step"] + 1)
        figures = {}
        for source, num_blocks in zip(manifest.mixture, blocks, strict=True):
            figures[f"data/{source.label}/tokens"] = float(num_blocks * manifest.sequence_length)
            figures[f"data/{source.label}/epochs"] = num_blocks / source.train.blocks
        pl_module.log_dict(figures)
