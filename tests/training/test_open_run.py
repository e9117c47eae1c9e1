"""A run that is over, opened again: the model and the data that it ended with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pathmoe.training.export import load_model
from pathmoe.training.open_run import open_run, read_summary


def test_it_is_the_runs_last_model_and_its_data(finished_run: Any) -> None:
    for run in (finished_run.folder, finished_run.folder / "last.ckpt"):
        model, data = open_run(str(run))
        last = load_model(finished_run.folder / "last.ckpt")
        assert all(torch.equal(last.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
        assert not model.training
        content = torch.load(finished_run.folder / "last.ckpt", weights_only=True)
        assert data.state_dict() == content["TokenDataModule"] | {"data.global_batch_size": data.micro_batch_size}
        settings = yaml.safe_load((finished_run.folder / "config.yaml").read_text())
        assert data.manifest.source == settings["data"]["source"]


def test_the_seed_of_its_data_is_the_runs(run_copy: Path) -> None:
    text = (run_copy / "config.yaml").read_text().replace("seed_everything: 0", "seed_everything: 7")
    (run_copy / "config.yaml").write_text(text)
    assert open_run(str(run_copy))[1].seed == 7


def test_where_no_run_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--ckpt_path \(.*/none\) must be an existing checkpoint"):
        open_run(str(tmp_path / "none"))


def test_the_summary_of_a_run(finished_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads((finished_run.folder / "summary.json").read_text())
    (tmp_path / "runs").symlink_to(finished_run.folder.parent)
    monkeypatch.chdir(tmp_path)
    for run in ("last", "best", str(finished_run.folder), str(finished_run.folder / "best.ckpt")):
        assert read_summary(run, needed="val/loss") == expected


def test_a_run_that_has_not_ended_or_not_measured_enough_has_no_summary_to_read(run_copy: Path) -> None:
    with pytest.raises(ValueError, match=r"/summary\.json must hold val/bits_per_byte, .* trainer\.limit_val_batches"):
        read_summary(str(run_copy), needed="val/bits_per_byte")
    (run_copy / "summary.json").unlink()
    with pytest.raises(
        ValueError, match=r"/summary\.json must be there, .*; finish the run with fit --ckpt_path .*/copy"
    ):
        read_summary(str(run_copy), needed="val/loss")
    with pytest.raises(ValueError, match=r"--ckpt_path \(.*/none\) must be an existing checkpoint"):
        read_summary(str(run_copy / "none"), needed="val/loss")
