"""A run that is over, opened again: the model and the data that it ended with."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pathmoe.training.export import load_model
from pathmoe.training.open_run import open_run


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
