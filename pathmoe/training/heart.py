"""Callback that writes this rank's heartbeat."""

import contextlib
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from pathmoe.training.heartbeat import Heartbeat, heartbeat_file, write_heartbeat

_SECONDS_BETWEEN_WRITES = 1.0


class Heart(Callback):
    """Notes where this rank is; a thread of its own writes that down once a second.

    So training never waits for the file system, and of a rank that hangs the file says where, since the thread goes on.
    A write that fails is left out.

    Args:
        run_folder: of the run; the file is in its `heartbeat/`.
    """

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self._began = time.time()
        self._host = socket.gethostname()
        self._heartbeat: Heartbeat | None = None
        self._step_ended: float | None = None
        self._step_seconds: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _beat(self, trainer: Trainer, phase: str) -> None:
        now = time.time()
        self._heartbeat = Heartbeat(
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            host=self._host,
            pid=os.getpid(),
            step=trainer.global_step,
            phase=phase,
            beat=0 if self._heartbeat is None else self._heartbeat.beat + 1,
            unix_time=now,
            alive_unix_time=now,
            step_seconds=self._step_seconds,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; the first rank removes what ranks of another start of the run have left."""
        folder = heartbeat_file(self.run_folder, trainer.global_rank).parent
        folder.mkdir(parents=True, exist_ok=True)
        if trainer.is_global_zero:
            for file in folder.glob("rank-*.json"):
                if file.stat().st_mtime < self._began:
                    file.unlink(missing_ok=True)
        self._beat(trainer, "data")
        self._thread = threading.Thread(target=self._write_until_stopped, name="heart", daemon=True)
        self._thread.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there."""
        self._beat(trainer, "forward")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The forward is over."""
        self._beat(trainer, "backward")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The last backward of the step is over."""
        self._beat(trainer, "update")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is not."""
        if batch["micro_batch"] + 1 == trainer.accumulate_grad_batches:
            before, self._step_ended = self._step_ended, time.perf_counter()
            self._step_seconds = None if before is None else self._step_ended - before
        self._beat(trainer, "data")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation begins."""
        self._beat(trainer, "validation")

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """It gets on."""
        self._beat(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is over."""
        self._beat(trainer, "data")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is being saved."""
        self._beat(trainer, "checkpoint")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave word that this rank is no longer there."""
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The same."""
        self._end()

    def _end(self) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        assert self._heartbeat is not None
        # Without another beat, which the others may be waiting for.
        self._heartbeat = replace(self._heartbeat, phase="ended", unix_time=time.time())
        self._write()

    def _write_until_stopped(self) -> None:
        while not self._stop.is_set():
            self._write()
            self._stop.wait(_SECONDS_BETWEEN_WRITES)

    def _write(self) -> None:
        assert self._heartbeat is not None
        with contextlib.suppress(OSError):
            write_heartbeat(self.run_folder, replace(self._heartbeat, alive_unix_time=time.time()))
