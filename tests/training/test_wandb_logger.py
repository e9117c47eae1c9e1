"""Runs of wandb without a network, read back from what they wrote."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

from pathmoe.training.wandb_logger import RunWandbLogger
from tests.training.test_module_logging import wandb_records

ROOT = Path(__file__).resolve().parents[2]


class Written(NamedTuple):
    """What one start of one rank has left."""

    run_id: str
    group: str
    name: str
    job_type: str
    project: str
    steps: list[int]


def read(file: Path) -> Written:
    from wandb.proto.wandb_internal_pb2 import Record

    run, steps = None, []
    for record in map(Record.FromString, wandb_records(file)):
        run = record.run if record.HasField("run") else run
        figures = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/loss" in figures:
            steps.append(int(figures["trainer/global_step"]))
    assert run is not None
    return Written(run.run_id, run.run_group, run.display_name, run.job_type, run.project, steps)


@pytest.mark.slow
def test_all_starts_of_a_run_are_one_run_and_ranks_are_a_group(mini: Path, tmp_path: Path) -> None:
    def fit(max_steps: int) -> None:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(ROOT / "train.py"), "fit", "--config", "tiny", "--config", "path_b4", "--config", str(mini)),
            *("--config", "ddp", "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--config", "wandb"),
            *("--trainer.logger.all_ranks", "true", "--trainer.callbacks", "null"),
            *("--run_dir", "runs/named", "--ckpt_path", "last", "--trainer.max_steps", str(max_steps)),
        ]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "eval")])
        # The configuration alone keeps it offline; and it shall not find the service of a test in this process.
        environment = os.environ | {"PYTHONPATH": paths, "WANDB_BASE_URL": "http://127.0.0.1:9"}
        for name in ("WANDB_MODE", "WANDB_SERVICE"):
            environment.pop(name, None)
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr

    fit(2)
    fit(4)
    folder = tmp_path / "runs" / "named" / "wandb"
    starts = [read(file) for file in sorted(folder.glob("offline-run-*/run-*.wandb"))]
    assert {(start.group, start.project) for start in starts} == {("named", "pathmoe")}
    assert Counter(start.name for start in starts) == {"named": 2, "named-rank1": 2}
    (run_id,), (of_rank,) = ({start.run_id for start in starts if start.name == n} for n in ("named", "named-rank1"))
    assert of_rank != run_id
    assert [(folder / f"rank-0000{rank}.id").read_text() for rank in (0, 1)] == [f"{run_id}\n", f"{of_rank}\n"]
    assert [start.steps for start in starts if start.name == "named"] == [[0, 1], [1, 2, 3]], "the last is logged again"
    assert {(start.job_type, *start.steps) for start in starts if start.name == "named-rank1"} == {("rank",)}


def settings(logger: RunWandbLogger) -> dict[str, Any]:
    return logger._wandb_init


def test_names_are_the_runs_unless_others_are_given(tmp_path: Path) -> None:
    plain = RunWandbLogger(save_dir=str(tmp_path / "tiny-omni"), offline=True)
    assert (settings(plain)["name"], settings(plain)["group"]) == ("tiny-omni", "tiny-omni")
    other = RunWandbLogger(save_dir=str(tmp_path), name="a", group="b", offline=True, tags=["c"])
    assert (settings(other)["name"], settings(other)["group"], settings(other)["tags"]) == ("a", "b", ["c"])


def test_a_rank_that_is_not_asked_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = RunWandbLogger(save_dir=str(tmp_path), offline=True)
    logger.experiment.log({"x": 1})
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_configuration_names_it() -> None:
    shipped = yaml.safe_load((ROOT / "configs" / "loggers" / "wandb.yaml").read_text())["trainer"]["logger"]
    assert shipped["class_path"] == f"{RunWandbLogger.__module__}.{RunWandbLogger.__qualname__}"
