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
    """Trains for one step with a `SaveRun` on the run folder, and other callbacks after it."""

    def run(*callbacks: Callback) -> Trainer:
        shape = PathMoEConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, moe_intermediate_size=8)
        trainer = Trainer(
            accelerator="cpu", logger=CSVLogger(tmp_path / "run", "csv"), max_steps=1, limit_val_batches=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
            default_root_dir=tmp_path / "run", callbacks=[SaveRun(tmp_path / "run", RESOLVED), *callbacks],
        )  # fmt: skip
        data = TokenDataModule(str(texts), vocab_size=300, sequence_length=32, validation_fraction=0.3)
        trainer.fit(PathMoEModule(shape, OptimizerConfig(), ScheduleConfig()), data)
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
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts == provenance() | {"data": asdict(manifest)}
    assert facts["torch"] == torch.__version__
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer.get_vocab() == trainer.datamodule.tokenizer.get_vocab()
    assert manifest.summary() in capsys.readouterr().out


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
