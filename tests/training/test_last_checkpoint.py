"""When the last checkpoint is written, and what it holds."""

import os
import signal
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch.utils._pytree import tree_flatten

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.background_saves import BackgroundSaves
from pathmoe.training.checked_file import write_checked
from pathmoe.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint, saved_step
from pathmoe.training.last_checkpoint import LastCheckpoint, last_good_checkpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.schedule import ScheduleConfig
from pathmoe.training.stop_signals import Stopped

SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "moe_intermediate_size": 8,
    "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


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


class Stop(Callback):
    """Asks once for a stop, as Lightning's Timer does in the first of these hooks and EarlyStopping in the second."""

    def __init__(self, hook: str, step: int, micro_batch: int = 0) -> None:
        self.at = (step, micro_batch)
        setattr(self, hook, self._stop)
        self.micro_batch = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.micro_batch = batch["micro_batch"]

    def _stop(self, trainer: Trainer, *_: Any) -> None:
        if (trainer.global_step, self.micro_batch) == self.at:
            trainer.should_stop = True


class Signal(Stop):
    """Sends signals to this process in the middle of a step."""

    def __init__(self, *signums: int, step: int, micro_batch: int = 0) -> None:
        super().__init__("on_before_optimizer_step" if micro_batch else "on_before_backward", step, micro_batch)
        self.signums = signums

    def _stop(self, trainer: Trainer, *_: Any) -> None:
        if (trainer.global_step, self.micro_batch) == self.at:
            for signum in self.signums:
                signal.raise_signal(signum)


def fit(
    folder: Path, every_n_steps: int, max_steps: int, *more: Callback, resume: str | bool = False, **options: Any
) -> tuple[Count, PathMoEModule]:
    count = Count()
    ways = {name: options.pop(name) for name in ("keep_every_n_steps", "background") if name in options}
    last = LastCheckpoint(folder / "last.ckpt", every_n_steps, **ways)
    ckpt_path = folder / ("last.ckpt" if resume is True else resume) if resume else None
    settings = {"limit_val_batches": 0, "num_sanity_val_steps": 1} | options
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        callbacks=[last, count, *more],  # Lightning puts the checkpoint last itself
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False} | settings,
    )
    module = PathMoEModule(PathMoEConfig(**SHAPE), schedule=ScheduleConfig(name="constant"))
    data = TokenDataModule(
        source="c-functions", num_documents=120, vocab_size=300, sequence_length=32, micro_batch_size=2
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
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
    names = {"last.ckpt"} if len(steps) == 1 else {"last.ckpt", "previous.ckpt"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert len(steps) == 1 or saved_step(tmp_path / "previous.ckpt") == steps[-2]
    saved = read_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == max_steps
    assert all(torch.equal(value, saved["state_dict"][name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("stop", "last", "validate"),
    [
        # Within a step, at its end, and before there is one to save; the step that has begun is ended.
        (Stop("on_train_batch_end", 4, micro_batch=1), 5, True),
        (Stop("on_train_batch_end", 4, micro_batch=1), 5, False),
        (Stop("on_train_batch_end", 5, micro_batch=2), 5, True),
        (Stop("on_train_batch_end", 5, micro_batch=2), 5, False),
        (Stop("on_train_batch_end", 0), 1, False),
        (Stop("on_validation_end", 4, micro_batch=2), 4, True),
        (Stop("on_validation_end", 3, micro_batch=2), 3, True),
    ],
)
def test_a_stop_loses_nothing_and_goes_on_exactly(tmp_path: Path, stop: Stop, last: int, validate: bool) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 3, "limit_val_batches": int(validate)}
    if validate:
        options |= {"val_check_interval": 3, "check_val_every_n_epoch": None}
    (tmp_path / "whole").mkdir()
    _, whole = fit(tmp_path / "whole", 3, 8, **options)
    stopped, _ = fit(tmp_path, 3, 8, stop, **options)
    assert [step for step, _ in stopped.written] == sorted({3, last} & set(range(last + 1)))
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == last
    resumed, module = fit(tmp_path, 3, 8, resume=True, **options)
    assert [step for step, _ in resumed.written] == [step for step in (3, 6, 8) if step > last]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in module.state_dict().items())


def test_a_stop_waits_for_the_steps_that_must_be(tmp_path: Path) -> None:
    count, _ = fit(tmp_path, 3, 8, Stop("on_train_batch_end", 2), min_steps=5, min_epochs=0)
    assert [step for step, _ in count.written] == [3, 5]


def test_the_end_of_the_last_epoch_is_saved(tmp_path: Path) -> None:
    epochs = {"limit_train_batches": 4, "max_epochs": 2}
    count, _ = fit(tmp_path, 5, 100, **epochs)
    assert [step for step, _ in count.written] == [5, 8]
    count, _ = fit(tmp_path, 5, 100, resume=True, **epochs)
    assert count.written == [], "it is over"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_signal_stops_at_the_end_of_the_step(tmp_path: Path, signum: int, micro_batch: int) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    options = {"accumulate_grad_batches": 2}
    _, whole = fit(tmp_path / "whole", 9, 6, **options)
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, 9, 6, Signal(signum, step=3, micro_batch=micro_batch), **options)
    assert stopped.value.code == 128 + signum
    assert stopped.value.line == "stopped at step 4; go on with the same command and --ckpt_path last"
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    resumed, module = fit(tmp_path, 9, 6, resume=True, **options)
    assert [step for step, _ in resumed.written] == [6]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in module.state_dict().items())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    for every_n_steps, where in ((9, "before the first checkpoint"), (2, "at step 2")):
        with pytest.raises(Stopped) as stopped:
            fit(tmp_path, every_n_steps, 6, Signal(signal.SIGTERM, signal.SIGINT, step=3))
        assert stopped.value.code == 130
        assert stopped.value.line == f"stopped {where}; go on with the same command and --ckpt_path last"


def test_the_validation_of_the_step_comes_before_a_stop(tmp_path: Path) -> None:
    validation = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    with pytest.raises(Stopped):
        fit(tmp_path, 9, 5, Signal(signal.SIGINT, step=1), **validation)
    resumed, _ = fit(tmp_path, 9, 5, resume=True, **validation)
    # That of the sanity check and that of step 2 are in the checkpoint; step 4 has the only other one.
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint["callbacks"]["Count"]["validations"] == 1
    assert [step for step, _ in resumed.written] == [5]


class Log(Logger):
    """Keeps what it is given."""

    name, version = "log", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def test_the_checkpoints_step_is_logged_again_unless_the_run_is_over(tmp_path: Path) -> None:
    first, second, third = Log(), Log(), Log()
    fit(tmp_path, 3, 4, logger=first, log_every_n_steps=1)
    fit(tmp_path, 3, 6, logger=second, log_every_n_steps=1, resume=True)
    fit(tmp_path, 3, 6, logger=third, log_every_n_steps=1, resume=True)
    assert (first.steps, second.steps, third.steps) == ([0, 1, 2, 3], [3, 4, 5], [])


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
    with pytest.raises(ValueError, match=r"^--checkpoint_keep_every_n_steps \(-1\) must be at least 1"):
        LastCheckpoint(tmp_path / "last.ckpt", 1, -1)


def steps(folder: Path) -> dict[str, int]:
    return {path.name: saved_step(path) for path in folder.iterdir()}


def test_the_one_before_is_kept_and_those_of_every_so_many_steps(tmp_path: Path) -> None:
    count, _ = fit(tmp_path, 3, 8, keep_every_n_steps=4)
    assert [step for step, _ in count.written] == [3, 4, 6, 8]
    assert steps(tmp_path) == {"last.ckpt": 8, "previous.ckpt": 6, "step=4.ckpt": 4, "step=8.ckpt": 8}
    # Those that are there stay, whatever is kept from here on.
    fit(tmp_path, 3, 10, resume=True)
    assert steps(tmp_path) == {"last.ckpt": 10, "previous.ckpt": 9, "step=4.ckpt": 4, "step=8.ckpt": 8}


def test_who_goes_on_from_the_one_before_keeps_it_until_there_are_two_again(tmp_path: Path) -> None:
    _, whole = fit(tmp_path / "whole", 2, 8)
    fit(tmp_path / "run", 2, 6)
    last = tmp_path / "run" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.raises(ValueError, match="must be a whole checkpoint, but it was altered"):
        fit(tmp_path / "run", 2, 8, resume=True)
    fit(tmp_path / "run", 2, 6, resume="previous.ckpt")
    assert steps(tmp_path / "run") == {"last.ckpt": 6, "previous.ckpt": 4}, "the damaged one takes no other's place"
    _, module = fit(tmp_path / "run", 2, 8, resume=True)
    assert steps(tmp_path / "run") == {"last.ckpt": 8, "previous.ckpt": 6}
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in module.state_dict().items())


class Release(Callback):
    """Lets a save that waits for it go on once training has got to a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.event = Event()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.event.set()


def test_what_is_written_beside_training_is_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = Release(5)
    fit(tmp_path / "sync", 3, 6, Release(5))

    def wait_and_write(content: Any, path: Path) -> None:
        assert release.event.wait(60)
        write_checked(content, path)

    monkeypatch.setattr("pathmoe.training.checkpoint_io.write_checked", wait_and_write)
    fit(tmp_path / "async", 3, 6, release, background=BackgroundSaves())
    for name, step in (("previous.ckpt", 3), ("last.ckpt", 6)):
        found, expected = (read_checkpoint(tmp_path / kind / name) for kind in ("async", "sync"))
        assert found["global_step"] == step
        ours, theirs = tree_flatten(found), tree_flatten(expected)
        assert ours[1] == theirs[1]
        for one, other in zip(ours[0], theirs[0], strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("max_steps", [3, 5])
def test_an_error_beside_training_ends_it_at_the_next_save(
    max_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, 2, 2)
    monkeypatch.setattr(os, "fsync", _disk_full)
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path, 2 if max_steps > 3 else 9, max_steps, resume=True, background=BackgroundSaves())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


class Fail(Callback):
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("of the training")


def test_where_training_fails_what_is_being_written_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="of the training"):
        fit(tmp_path, 4, 6, Fail(), background=BackgroundSaves())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 4
    monkeypatch.setattr(os, "fsync", _disk_full)
    with pytest.raises(RuntimeError, match="of the training"):
        fit(tmp_path / "other", 4, 6, Fail(), background=BackgroundSaves())
    assert "the last checkpoint was not written: [Errno 28] No space left" in capsys.readouterr().err


def _disk_full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_the_last_good_checkpoint_is_named_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    quiet = {"logger": False, "enable_checkpointing": True, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", devices=1, callbacks=[LastCheckpoint(path, 1)], **quiet)
    assert "no checkpoint yet" in last_good_checkpoint(trainer)
    path.touch()
    assert last_good_checkpoint(trainer) == f"go on from the last good checkpoint with --ckpt_path {path}"
    assert "no checkpoint yet" in last_good_checkpoint(Trainer(accelerator="cpu", devices=1, logger=False))
