"""What happens to long runs, done to real processes: each fault's outcome is a row of docs/reliability.md."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from pathmoe.training.checkpoint_io import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_END = 60
TIMEOUT = "0:00:15"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="starts processes that talk over gloo"),
]


class Fault(Callback):
    """A signal that a rank sends itself in a step, in a checkpoint or in a validation: FAULT says which."""

    def __init__(self) -> None:
        self.where, self.step, self.rank, self.signum = os.environ.get("FAULT", "nowhere 0 0 0").split()

    def _strike(self, trainer: Trainer, where: str) -> None:
        if (str(trainer.global_step), str(trainer.global_rank), where) == (self.step, self.rank, self.where):
            os.kill(os.getpid(), int(self.signum))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if (self.where, self.step) == ("disk", str(trainer.global_step)):
            with Path("small/filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(4096))

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Any) -> None:
        self._strike(trainer, "step")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._strike(trainer, "validation")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: Any) -> None:
        at = (str(trainer.global_step), str(trainer.global_rank), "checkpoint")
        if at == (self.step, self.rank, self.where):
            # Its bytes are written, but not yet on disk, and nothing is renamed.
            os.fsync = lambda _: os.kill(os.getpid(), int(self.signum))


class Ranks(NamedTuple):
    """Processes of one run, which nobody ends for them."""

    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def status(self, rank: int) -> int:
        return self.processes[rank].wait(SECONDS_TO_END)

    def error(self, rank: int) -> str:
        """What a rank that has ended said on stderr."""
        self.status(rank)
        return (self.folder / f"stderr-{rank}").read_text()


@pytest.fixture
def started() -> Iterator[list[Ranks]]:
    """Runs whose processes end with the test."""
    runs: list[Ranks] = []
    yield runs
    for run in runs:
        for process in run.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, mini: Path) -> Path:
    """The mini configuration for two ranks: six steps, with a checkpoint and a validation after each second one."""
    settings = yaml.safe_load(mini.read_text())
    settings["model"]["optimizer"] = {"name": "adamw", "lr": 0.01}
    settings["trainer"] |= {
        "accelerator": "cpu", "devices": 2, "max_steps": 6, "val_check_interval": 2, "limit_val_batches": 2,
        "enable_progress_bar": False, "callbacks": [{"class_path": "faults.Fault"}],
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("faults")
    shutil.copy(__file__, folder / "faults.py")
    file = folder / "faults.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def arguments(config: Path, strategy: str) -> list[str]:
    files = ("tiny", "path_b4", str(config), strategy)
    return [argument for file in files for argument in ("--config", file)] + ["--trainer.accelerator", "cpu"]


def environment_of(config: Path, fault: tuple[str, int, int, int] | None) -> dict[str, str]:
    """What makes a fault happen: where, in which step and rank, which signal."""
    path = os.pathsep.join([str(config.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | ({"FAULT": "{} {:d} {:d} {:d}".format(*fault)} if fault else {})


def start(
    config: Path, folder: Path, strategy: str, *more: str, fault: tuple[str, int, int, int] | None = None
) -> Ranks:
    """Two ranks of one run, as a launcher starts them."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, str(ROOT / "train.py"), "fit", "--run_dir", "run", *arguments(config, strategy)]
    line += ["--trainer.devices", "2", "--trainer.strategy.init_args.timeout", TIMEOUT, *more]
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        environment = environment_of(config, fault) | {name: str(value) for name, value in (place | group).items()}
        with (folder / f"stderr-{rank}").open("wb") as stderr:
            processes.append(
                subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
            )
    return Ranks(folder, processes)


def finish(config: Path, folder: Path, strategy: str, *more: str) -> dict[str, Any]:
    """The last checkpoint of a run that nothing happens to."""
    run = start(config, folder, strategy, *more)
    for rank in range(2):
        assert run.status(rank) == 0, run.error(rank)[-3000:]
    return read_checkpoint(folder / "run" / "last.ckpt")


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(config: Path, strategy: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run comes to."""
    return finish(config, tmp_path_factory.mktemp(f"undisturbed-{strategy}"), strategy)


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["global_step"] == expected["global_step"] == 6
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name


@pytest.mark.parametrize(
    ("where", "step", "flags"),
    [("step", 3, []), ("validation", 4, []), ("checkpoint", 4, []), ("checkpoint", 4, ["--checkpoint_async", "true"])],
)
def test_a_rank_that_is_killed_ends_the_others_in_one_line_and_the_run_goes_on_as_if_it_had_not_been(
    config: Path,
    undisturbed: dict[str, Any],
    strategy: str,
    started: list[Ranks],
    tmp_path: Path,
    where: str,
    step: int,
    flags: list[str],
) -> None:
    # Under DDP rank 0 alone writes a checkpoint.
    killed = 0 if (strategy, where) == ("ddp", "checkpoint") else 1
    run = start(config, tmp_path, strategy, *flags, fault=(where, step, killed, signal.SIGKILL))
    started.append(run)
    assert run.status(killed) == -signal.SIGKILL
    begin = time.monotonic()
    assert run.status(1 - killed) == 3, run.error(1 - killed)[-3000:]
    assert time.monotonic() - begin < 30
    said = run.error(1 - killed)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    # What is written beside training is written while that goes on.
    assert re.search(rf"rank {1 - killed} has lost other ranks in step {'[45]' if flags else step} \(", line)
    assert f"rank {killed} on {socket.gethostname()} (pid {run.processes[killed].pid}): " in line
    assert "Traceback" not in said
    assert line.endswith("go on from the last good checkpoint with --ckpt_path run/last.ckpt")
    resumed = finish(config, tmp_path, strategy, "--ckpt_path", "last")
    assert_same_bits(resumed, undisturbed)


def test_a_rank_that_hangs_is_named_once_the_others_have_waited_for_long_enough(
    config: Path, strategy: str, started: list[Ranks], tmp_path: Path
) -> None:
    run = start(config, tmp_path, strategy, fault=("step", 3, 1, signal.SIGSTOP))
    started.append(run)
    assert run.status(0) == 3, run.error(0)[-3000:]
    (line,) = [line for line in run.error(0).splitlines() if line.startswith("error: ")]
    assert "rank 0 has lost other ranks in step 3 (Timed out waiting 15000ms" in line
    # What it wrote last may be of a second before.
    hung = f"rank 1 on {socket.gethostname()} (pid {run.processes[1].pid})"
    assert re.search(rf"{re.escape(hung)}: step \d, .*, gone or stopped; see", line)


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_from_which_the_run_goes_on(
    config: Path, undisturbed: dict[str, Any], strategy: str, started: list[Ranks], tmp_path: Path
) -> None:
    told = {"ddp": 1, "fsdp2": 0}[strategy]
    run = start(config, tmp_path, strategy, fault=("step", 2, told, signal.SIGTERM))
    started.append(run)
    # The other one stops as by Ctrl-C.
    assert run.status(told) == 128 + signal.SIGTERM
    assert run.status(1 - told) == 128 + signal.SIGINT
    assert "stopped at step 3; go on with the same command and --ckpt_path last" in run.error(0)
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == 3
    assert_same_bits(finish(config, tmp_path, strategy, "--ckpt_path", "last"), undisturbed)


@pytest.mark.parametrize("ranks", ["one device", "ddp", "fsdp2"])
def test_a_disk_that_is_full_stops_the_run_and_leaves_the_checkpoint_before(
    config: Path, tmp_path: Path, ranks: str
) -> None:
    # On a file system of its own, which is gone with the processes that see it.
    script = """
        mkdir small && mount -t tmpfs -o size=16m tmpfs small || exit 9
        "$@"
        status=$?
        rm small/filler && cp -r small/run run && exit $status
    """
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    alone = ranks == "one device"
    python = [] if alone else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [
        *apart, "bash", "-c", script, "bash", sys.executable, *python, str(ROOT / "train.py"), "fit",
        *arguments(config, str(config) if alone else ranks), "--run_dir", "small/run", "--trainer.devices",
        "1" if alone else "2",
    ]  # fmt: skip
    environment = environment_of(config, ("disk", 3, 0, 0))
    ended = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == (2 if alone else 1), ended.stderr[-3000:]  # torchrun has a status of its own
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ") and "lost" not in line]
    assert "No space left on device" in error and "make room" in error
    assert read_checkpoint(tmp_path / "run" / "last.ckpt")["global_step"] == 2
    assert not list((tmp_path / "run").glob(".*partial*"))
