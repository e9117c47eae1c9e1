"""Callback that keeps the run's last checkpoint."""

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from pathmoe.training.background_saves import BackgroundSaves
from pathmoe.training.checkpoint_io import saved_step
from pathmoe.training.checkpoint_names import SaveOptions
from pathmoe.training.run_folder import PREVIOUS_CHECKPOINT
from pathmoe.training.stop_signals import Stopped, StopSignals


class LastCheckpoint(Checkpoint):
    """Replaces one checkpoint every so many optimizer steps, and after the last one, whatever ends the fit.

    A `ModelCheckpoint` would leave out the last steps, or save them once the epoch is over, from where Lightning does
    not go on as it would have. As a `Checkpoint` it runs after all other callbacks, so that their state is in the file.

    A stop that another callback asks for within a step, as `trainer.max_time` does, waits for the end of the step. So
    does Ctrl-C, or SIGTERM, after which nothing else is done but the validation that is due or under way, before which
    the step is safe already; a second one does not wait.

    Args:
        path: the checkpoint; the one before it is kept beside it.
        every_n_steps: optimizer steps between checkpoints.
        keep_every_n_steps: optimizer steps between those that are kept for good, under names of their own.
        background: where they are written while training goes on; None waits for them.
    """

    def __init__(
        self,
        path: Path,
        every_n_steps: int,
        keep_every_n_steps: int | None = None,
        background: BackgroundSaves | None = None,
    ) -> None:
        for option, value in (("every_n_steps", every_n_steps), ("keep_every_n_steps", keep_every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"--checkpoint_{option} ({value}) must be at least 1; raise it")
        self.path = path
        self.every_n_steps = every_n_steps
        self.keep_every_n_steps = keep_every_n_steps
        self.background = background
        self._keeps_the_one_before = True
        self._save_after_validation = False
        self._stop_at_end_of_step = False
        self._saved_step: int | None = None
        self._signals = StopSignals()
        self._stopped_by: int | None = None
        self._logged: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the checkpoint's step again: the first time comes after the checkpoint, and a kill may come between.

        A fit that was over already does not come here.
        """
        self._saved_step = trainer.global_step
        # Who goes on from another one has a reason not to trust the last.
        self._keeps_the_one_before = trainer.ckpt_path is None or (
            self.path.exists() and self.path.samefile(trainer.ckpt_path)
        )
        self._signals.listen()
        if self._logged:
            for logger in trainer.loggers:
                logger.log_metrics({k: v for k, v in self._logged.items() if k != "step"}, int(self._logged["step"]))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where a step is complete; after the validation where one follows, so that a resumed run has it too."""
        if batch["micro_batch"] + 1 < trainer.accumulate_grad_batches:
            self._stop_at_end_of_step |= trainer.should_stop
            trainer.should_stop = False
            return
        trainer.should_stop |= self._stop_at_end_of_step
        self._stopped_by = self._signals.received(trainer)
        step = trainer.global_step
        self._logged = _logged_figures(trainer) if step % trainer.log_every_n_steps == 0 else {}
        due = step % self.every_n_steps == 0 or self._is_kept(step) or self._is_last(trainer)
        self._save_after_validation = due and _validation_follows(trainer)
        if due and (self._stopped_by or not self._save_after_validation):
            # Who has told the run to stop may not let it come to the end of a validation.
            self._save(trainer, goes_on=self._save_after_validation)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the end of the step has left for now, or where the validation made another callback stop."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._stopped_by = self._stopped_by or self._signals.received(trainer)
        if self._save_after_validation or self._stopped_by or _stops(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where the fit has ended in a way that could not be foreseen."""
        self._signals.leave()
        if self._saved_step is not None and trainer.global_step > self._saved_step:
            self._save(trainer)
        if self.background is not None:
            self.background.wait()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Where a signal ends a fit that has started, say where it has got to and how to go on.

        What is being written is finished first, unless a signal has come that does not wait.
        """
        self._signals.leave()
        if self.background is not None and not isinstance(exception, Stopped):
            try:
                self.background.wait()
            except Exception as error:
                if trainer.is_global_zero:
                    sys.stderr.write(f"the last checkpoint was not written: {error}\n")
        if isinstance(exception, Stopped) and self._saved_step is not None:
            where = f"at step {saved_step(self.path)}" if self.path.exists() else "before the first checkpoint"
            exception.line = f"stopped {where}; go on with the same command and --ckpt_path last"

    def _save(self, trainer: Trainer, goes_on: bool = False) -> None:
        self._save_after_validation = goes_on
        step = self._saved_step = trainer.global_step
        options = SaveOptions(
            previous=self.path.with_name(PREVIOUS_CHECKPOINT) if self._keeps_the_one_before else None,
            permanent=self.path.with_name(f"step={step}.ckpt") if self._is_kept(step) else None,
            background=self.background,
        )
        trainer.save_checkpoint(self.path, storage_options=options)
        self._keeps_the_one_before = True
        if self.background is not None and self._is_last(trainer):
            self.background.wait()
        if self._stopped_by and not goes_on:
            raise Stopped(self._stopped_by)

    def _is_kept(self, step: int) -> bool:
        return self.keep_every_n_steps is not None and step % self.keep_every_n_steps == 0

    def _is_last(self, trainer: Trainer) -> bool:
        return trainer.global_step == trainer.max_steps or _stops(trainer) or bool(self._stopped_by)

    def state_dict(self) -> dict[str, Any]:
        """What was logged of the step that the checkpoint was written at."""
        return {"logged": self._logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was logged."""
        self._logged = state_dict["logged"]


def _logged_figures(trainer: Trainer) -> dict[str, float]:
    """This step's row of the log, before Lightning hands it to the loggers."""
    figures = {name: float(value) for name, value in trainer.logged_metrics.items() if not name.startswith("val/")}
    return figures | {"epoch": trainer.current_epoch, "step": trainer.global_step - 1}


def _stops(trainer: Trainer) -> bool:
    """Whether a fit ends with this step because a callback asks for it."""
    if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
        return False
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates after the batch that has just ended; it has no public way to ask."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def last_good_checkpoint(trainer: Trainer) -> str:
    """For an error message: how to go on from the last checkpoint of the run."""
    paths = [callback.path for callback in trainer.callbacks if isinstance(callback, LastCheckpoint)]
    if not any(path.exists() for path in paths):
        return "start again, as there is no checkpoint yet"
    return f"go on from the last good checkpoint with --ckpt_path {paths[0]}"
