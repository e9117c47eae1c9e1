"""Callback that lays down, beside the checkpoints, what is needed to use them: configuration, provenance, tokenizer."""

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pathmoe.training.provenance import provenance
from pathmoe.training.run_folder import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    TOKENIZER_FOLDER,
    lock_run_folder,
    refuse_another_run,
    write_text_atomically,
)


class SaveRun(Callback):
    """Writes the resolved configuration, the provenance and the tokenizer into the run folder when training starts.

    That is once nothing about the run can be refused any more. From then on the folder is this process's own.

    Args:
        run_folder: where.
        resolved_config: the configuration after all files and flags, plain types only.
    """

    def __init__(self, run_folder: Path, resolved_config: dict) -> None:
        self.run_folder = run_folder
        self.resolved_config = resolved_config
        self._lock: int | None = None
        self._started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, on the first rank."""
        if not trainer.is_global_zero:
            return
        self._lock = lock_run_folder(self.run_folder)
        # Once more, since another process may have come and gone while this one prepared.
        refuse_another_run(self.run_folder, trainer.ckpt_path)
        self._started = True
        facts = provenance() | {"data": asdict(trainer.datamodule.manifest)}
        write_text_atomically(self.run_folder / PROVENANCE_FILE, json.dumps(facts, indent=2) + "\n")
        trainer.datamodule.tokenizer.save_pretrained(self.run_folder / TOKENIZER_FOLDER)
        print(trainer.datamodule.manifest.summary())
        print(f"run: {self.run_folder}, {f'goes on from {trainer.ckpt_path}' if trainer.ckpt_path else 'new'}")
        text = yaml.safe_dump(self.resolved_config, sort_keys=False)
        write_text_atomically(self.run_folder / CONFIG_FILE, text)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See `_leave`."""
        self._leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """See `_leave`."""
        self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        """Let go of the folder; where no training started, leave nothing behind of what the loggers made."""
        if not self._started and trainer.is_global_zero:
            for logger in trainer.loggers:
                _remove_empty_folders(Path(logger.log_dir or self.run_folder), top=self.run_folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_empty_folders(folder: Path, top: Path) -> None:
    """Remove `folder` and those above it, `top` included, until one is not empty."""
    with contextlib.suppress(OSError):
        while folder.is_relative_to(top):
            folder.rmdir()
            folder = folder.parent
