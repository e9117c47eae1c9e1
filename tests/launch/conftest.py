"""A folder as the launch files find it, with a run that takes seconds, and processes that end with their test."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pathmoe.training.heartbeat import read_heartbeats

ROOT = Path(__file__).resolve().parents[2]
RUN = "runs/launched"
STEPS = 200
SETTINGS = {
    "seed_everything": 0,
    "checkpoint_every_n_steps": 10,
    "model": {
        "config": {
            "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "layers_per_router": 2,
        },
        "schedule": {"name": "constant", "warmup_steps": 1},
    },
    "data": {"source": "texts", "validation_fraction": 0.3, "sequence_length": 32, "micro_batch_size": 2},
    "trainer": {
        "accelerator": "cpu", "max_steps": STEPS, "limit_val_batches": 0, "num_sanity_val_steps": 0,
        "log_every_n_steps": 10, "enable_model_summary": False, "enable_progress_bar": False,
    },
}  # fmt: skip
TINY = ["--config", "ddp", "--config", "settings.yaml", "--run_dir", RUN]
"""What every launch is given on top of its own: a run of two processes on CPUs."""

Start = Callable[..., "subprocess.Popen[str]"]


def make_folder(folder: Path) -> Path:
    """The repository, but for its runs, with a configuration and data."""
    for name in ("train.py", "configs", "pathmoe", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "texts").mkdir()
    for number in range(6):
        (folder / "texts" / f"{number}.txt").write_text(" ".join(str(number * i % 97) for i in range(500)))
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def popen(command: list[str], folder: Path, **environment: str) -> "subprocess.Popen[str]":
    """A process in a group of its own, with the programs of this Python first."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "eval"), os.environ.get("PYTHONPATH", "")]
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PATH": programs, "PYTHONPATH": os.pathsep.join(paths)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def parent(pid: int) -> int:
    """The process that started another one; 0 where there is none any more."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("PPid:")), 0)


def kill(*pids: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts a command in the folder; ends what is left of it and of its workers at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(command: list[str], **environment: str) -> "subprocess.Popen[str]":
        processes.append(popen(command, folder, **environment))
        return processes[-1]

    yield start_one
    kill(*(process.pid for process in processes))
    kill(*(heartbeat.pid for heartbeat in read_heartbeats(folder / RUN) if heartbeat.phase != "ended"))
    for process in processes:
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_until(condition: Callable[[], Any], *processes: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Wait for something, as long as the processes live."""
    began = time.monotonic()
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() - began < seconds
        time.sleep(0.05)


def step(folder: Path) -> int:
    """How far the ranks that are alive have got."""
    return max((h.step for h in read_heartbeats(folder / RUN) if h.phase != "ended"), default=0)


def saved(folder: Path) -> dict[str, Any]:
    """The last checkpoint of the run."""
    checkpoint: dict[str, Any] = torch.load(folder / RUN / "last.ckpt", weights_only=True)
    return checkpoint


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes that nothing has happened to, as the file for one node starts it."""
    folder = make_folder(tmp_path_factory.mktemp("undisturbed"))
    command = ["bash", "docs/launch/one_node.sh", *TINY, "--trainer.devices", "2"]
    process = popen(command, folder, PROCESSES="2", RESTARTS="0")
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return folder


def assert_same_weights(folder: Path, undisturbed: Path) -> None:
    """Whether the run has come to its end, bit for bit as if nothing had been."""
    found, expected = saved(folder), saved(undisturbed)
    assert found["global_step"] == expected["global_step"] == STEPS
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(tensor, expected["state_dict"][name]) for name, tensor in found["state_dict"].items())
