"""The launch under SLURM: what srun would start, with the variables that it sets, and the signal that it sends."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT, RUN, TINY, Start, assert_same_weights, saved, wait_until

pytestmark = pytest.mark.slow


def task() -> str:
    """What the job's script has the shell of each task run."""
    _, _, text = (ROOT / "docs" / "launch" / "slurm.sbatch").read_text().partition("bash -c '\n")
    return text.partition("' task ")[0]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def start_tasks(start: Start) -> list["subprocess.Popen[str]"]:
    """Two tasks on one node."""
    variables = {
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "pathmoe", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "MASTER_PORT": str(free_port()),
        "STATUSES": ".",
    }  # fmt: skip
    command = ["bash", "-c", task(), "task", *TINY]
    return [start(command, **variables, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]


def test_a_job_that_slurm_warns_goes_on_as_if_nothing_had_been(start: Start, folder: Path, undisturbed: Path) -> None:
    tasks = start_tasks(start)
    wait_until((folder / RUN / "last.ckpt").exists, *tasks)
    for process in tasks:
        os.killpg(process.pid, signal.SIGUSR1)  # as SLURM does, to all processes of a task
    outputs = [process.communicate(timeout=100)[0] for process in tasks]
    assert [process.returncode for process in tasks] == [128 + signal.SIGUSR1] * 2, outputs
    at = saved(folder)["global_step"]
    assert outputs[0].endswith(f"stopped at step {at}; go on with the same command and --ckpt_path last\n")
    assert not list((folder / RUN).rglob("hpc_ckpt*")), "Lightning's own, which would be preferred"

    again = start_tasks(start)
    outputs = [process.communicate(timeout=100)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    assert f"run: {RUN}, goes on from {RUN}/last.ckpt" in outputs[0]
    assert_same_weights(folder, undisturbed)
