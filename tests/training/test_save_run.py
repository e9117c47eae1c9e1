"""What lies beside a run's checkpoints, and that nothing does before the run has started."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoTokenizer

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.checkpoint_io import AtomicCheckpointIO, saved_step
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.module import PathMoEModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.provenance import provenance
from pathmoe.training.run_folder import lock_run_folder
from pathmoe.training.save_run import SaveRun
from pathmoe.training.schedule import ScheduleConfig

RESOLVED = {"model": {"config": {"vocab_size": 300}}, "seed_everything": 0}


class Raise(Callback):
    """Stops a run at a hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._stop)

    def _stop(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("stop")


@pytest.fixture
def fit_with(texts: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Trains for one step more with a `SaveRun` on the run folder, and other callbacks after it."""

    def run(*callbacks: Callback, resolved: dict = RESOLVED, config_files: tuple[Path, ...] = ()) -> Trainer:
        last = tmp_path / "run" / "last.ckpt"
        max_steps = saved_step(last) + 1 if last.exists() else 1
        shape = PathMoEConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, moe_intermediate_size=8)
        trainer = Trainer(
            accelerator="cpu", logger=CSVLogger(tmp_path / "run", "csv"), max_steps=max_steps, limit_val_batches=0,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
            default_root_dir=tmp_path / "run",
            callbacks=[SaveRun(tmp_path / "run", resolved, config_files), *callbacks],
            plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        data = TokenDataModule(str(texts), vocab_size=300, sequence_length=32, validation_fraction=0.3)
        module = PathMoEModule(shape, OptimizerConfig(), ScheduleConfig())
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
        return trainer

    return run


def test_settings_provenance_and_tokenizer_lie_in_the_folder(
    fit_with: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fit_with()
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "csv", "provenance.json", "tokenizer"}
    assert yaml.safe_load((folder / "config.yaml").read_text()) == RESOLVED
    manifest = trainer.datamodule.manifest
    record = json.loads((folder / "provenance.json").read_text())
    (part,) = record["parts"]
    assert part == provenance() | {"first_step": 0, "data": asdict(manifest), "config": RESOLVED}
    assert part["torch"] == torch.__version__
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer.get_vocab() == trainer.datamodule.tokenizer.get_vocab()
    assert manifest.summary() in capsys.readouterr().out


def test_a_part_is_kept_where_another_follows(fit_with: Callable[..., Trainer], tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text("a: 1")
    other.write_text("b: 2")
    last = tmp_path / "run" / "last.ckpt"
    fit_with(LastCheckpoint(last, 1), config_files=(one,))
    fit_with(LastCheckpoint(last, 1), config_files=(tmp_path / "run" / "config.yaml",))
    fit_with(LastCheckpoint(last, 1), config_files=(other,), resolved=RESOLVED | {"seed_everything": 1})
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert [(part["first_step"], part["config"]["seed_everything"]) for part in record["parts"]] == [(0, 0), (2, 1)]
    assert list(record["config_files"]) == [str(one), str(other)], "the saved configuration is no file behind itself"


def test_what_has_changed_is_said_on_one_line(
    fit_with: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last, saved = tmp_path / "run" / "last.ckpt", tmp_path / "run" / "config.yaml"
    fit_with(LastCheckpoint(last, 1))
    fit_with(LastCheckpoint(last, 1))
    assert "changed since" not in capsys.readouterr().out
    fit_with(LastCheckpoint(last, 1), resolved={"model": {"config": {"vocab_size": 301}}, "seed_everything": 0})
    lines = capsys.readouterr().out.splitlines()
    assert f"run: {tmp_path / 'run'}, goes on from {last}" in lines
    assert f"changed since {saved} was written: model.config.vocab_size (300 -> 301)" in lines


def test_the_tokenizer_of_a_checkpoint_is_left_alone(fit_with: Callable[..., Trainer], tmp_path: Path) -> None:
    last, folder = tmp_path / "run" / "last.ckpt", tmp_path / "run" / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("of a run that was killed before its first checkpoint")
    fit_with(LastCheckpoint(last, 1))
    AutoTokenizer.from_pretrained(folder)
    (folder / "mark").touch()
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    fit_with(LastCheckpoint(last, 1))
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


def test_a_run_that_does_not_start_leaves_nothing(fit_with: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        fit_with(Raise("on_fit_start"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_start_touches_nothing_that_was_there(
    fit_with: Callable[..., Trainer], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("of an earlier part")
    with pytest.raises(RuntimeError, match="stop"):
        fit_with(Raise("on_fit_start"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert (tmp_path / "run" / "config.yaml").read_text() == "of an earlier part"


def test_the_folder_is_this_runs_own_while_it_trains(fit_with: Callable[..., Trainer], tmp_path: Path) -> None:
    class TryToLock(Callback):
        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            with pytest.raises(ValueError, match="must not be in use by another process"):
                lock_run_folder(tmp_path / "run")

    fit_with(TryToLock())
    os.close(lock_run_folder(tmp_path / "run"))


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end", "on_train_end"])
def test_the_folder_is_free_after_a_fault(hook: str, fit_with: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        fit_with(Raise(hook))
    os.close(lock_run_folder(tmp_path / "run"))
    assert (tmp_path / "run" / "config.yaml").exists()


def test_a_folder_that_another_process_has_is_left_alone(fit_with: Callable[..., Trainer], tmp_path: Path) -> None:
    lock = lock_run_folder(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("of the other")
    with pytest.raises(ValueError, match=r"--run_dir \(.*/run\) must not be in use by another process; wait for it"):
        fit_with()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert (tmp_path / "run" / "config.yaml").read_text() == "of the other"
    os.close(lock)


def test_a_run_that_came_and_went_meanwhile_is_not_overwritten(
    fit_with: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Another(Callback):
        def on_fit_start(self, *_: Any) -> None:
            (tmp_path / "run" / "last.ckpt").touch()

    with pytest.raises(ValueError, match=r"--run_dir \(.*/run\) must not hold another run"):
        fit_with(Another())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]
    os.close(lock_run_folder(tmp_path / "run"))
