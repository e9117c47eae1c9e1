"""The progress bar: one line with loss, perplexity, speed and the time left."""

import shutil
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class ProgressBar(TQDMProgressBar):
    """Counts optimizer steps up to `max_steps`; fits in 80 columns."""

    # The bar takes the columns that the figures leave.
    BAR_FORMAT = "{desc} {n_fmt}/{total_fmt} {bar} {remaining} left{postfix}"

    def init_train_tqdm(self) -> Tqdm:
        """A line of at most 79 columns, wherever it goes to."""
        return Tqdm(
            desc="train",
            disable=self.is_disabled,
            leave=True,
            ncols=min(80, shutil.get_terminal_size().columns) - 1,
            file=sys.stdout,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )

    def init_validation_tqdm(self) -> Tqdm:
        """A bar of its own for `validate`; within a fit, validation is part of the run."""
        return Tqdm(disable=True) if self.trainer.state.fn == "fit" else super().init_validation_tqdm()

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Refresh at every step on a terminal, and now and then where the output goes to a file."""
        if not sys.stdout.isatty():
            self._refresh_rate = max(1, trainer.max_steps // 10)
        super().on_train_start()
        # The whole run, and here rather than at the epoch's start, which a run resumed within an epoch does not see.
        self.train_progress_bar.total = trainer.max_steps
        self.train_progress_bar.n = self.train_progress_bar.initial = trainer.global_step
        self.train_progress_bar.refresh()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Nothing: the stream of blocks has no epochs to show."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move to the step that is done."""
        done = trainer.global_step
        if self._should_update(done, trainer.max_steps) and done > self.train_progress_bar.n:
            self.train_progress_bar.n = done
            self.train_progress_bar.set_postfix_str(self._figures(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last figures on the line."""
        self.train_progress_bar.set_postfix_str(self._figures(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the validation's own bar."""
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar on a line of its own, for the line that says what has happened."""
        if self._train_progress_bar is not None:
            self._train_progress_bar.close()

    @staticmethod
    def _figures(trainer: Trainer) -> str:
        metrics = trainer.callback_metrics
        figures = []
        if "train/loss" in metrics:
            figures.append(f"loss {metrics['train/loss']:.3f}, ppl {metrics['train/perplexity']:.5g}")
        if "train/tokens_per_second" in metrics:
            figures.append(f"{Tqdm.format_sizeof(float(metrics['train/tokens_per_second']))} tok/s")
        return ", ".join(figures)
