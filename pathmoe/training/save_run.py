"""Callback that lays down, beside the checkpoints, what is needed to use them: configuration, provenance, tokenizer."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pathmoe.training.config_files import read_yaml
from pathmoe.training.provenance import provenance
from pathmoe.training.run_folder import (
    CONFIG_FILE,
    TOKENIZER_FOLDER,
    lock_run_folder,
    refuse_another_run,
    write_text_atomically,
)
from pathmoe.training.run_record import RunRecord, changes, hash_files, read_record


class SaveRun(Callback):
    """Writes the resolved configuration, the provenance and the tokenizer into the run folder when training starts.

    That is once nothing about the run can be refused any more. From then on the folder is this process's own. Where the
    run goes on from a checkpoint, the settings that have changed since are named on one line.

    Args:
        run_folder: where.
        resolved_config: the configuration after all files and flags, plain types only.
        config_files: the files among these, as they are now.
    """

    def __init__(self, run_folder: Path, resolved_config: dict, config_files: Sequence[str | Path] = ()) -> None:
        self.run_folder = run_folder
        self.resolved_config = resolved_config
        self.config_files = hash_files(config_files)
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
        saved = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).parent / CONFIG_FILE
        print(trainer.datamodule.manifest.summary())
        print(f"run: {self.run_folder}, {f'goes on from {trainer.ckpt_path}' if trainer.ckpt_path else 'new'}")
        if saved and saved.is_file() and (changed := changes(read_yaml(saved), self.resolved_config)):
            print(f"changed since {saved} was written: {changed}")
        self._write_tokenizer(trainer, goes_on_here=saved is not None and saved.parent.samefile(self.run_folder))
        # Before the record, which says what files need not be read again, since their settings are in this one.
        text = yaml.safe_dump(self.resolved_config, sort_keys=False)
        write_text_atomically(self.run_folder / CONFIG_FILE, text)
        self._write_record(trainer, RunRecord() if saved is None else read_record(saved.parent), saved)

    def _write_tokenizer(self, trainer: Trainer, goes_on_here: bool) -> None:
        folder = self.run_folder / TOKENIZER_FOLDER
        if goes_on_here and folder.exists():
            return  # that of the checkpoint: to go on with another is refused
        beside = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        trainer.datamodule.tokenizer.save_pretrained(beside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)

    def _write_record(self, trainer: Trainer, record: RunRecord, saved: Path | None) -> None:
        part = {"first_step": trainer.global_step, **provenance(), "data": asdict(trainer.datamodule.manifest)}
        files = {file: digest for file, digest in self.config_files.items() if saved is None or Path(file) != saved}
        record.with_part(part | {"config": self.resolved_config}, files).write(self.run_folder)

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
