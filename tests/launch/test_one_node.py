"""The launch on one node: a process that dies, and a node that is told to go."""

import signal
import sys
from pathlib import Path

import pytest

from pathmoe.training.heartbeat import read_heartbeats
from tests.launch.conftest import RUN, TINY, Start, assert_same_weights, kill, step, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks up processes in /proc")]

COMMAND = ["bash", "docs/launch/one_node.sh", *TINY, "--trainer.devices", "2"]


def test_a_run_loses_nothing_to_a_killed_process_nor_to_sigterm(start: Start, folder: Path, undisturbed: Path) -> None:
    launcher = start(COMMAND, PROCESSES="2")
    wait_until((folder / RUN / "last.ckpt").exists, launcher)
    first = {heartbeat.rank: heartbeat.pid for heartbeat in read_heartbeats(folder / RUN)}
    kill(first[0])  # with the lock of the run's folder
    wait_until(
        lambda: {heartbeat.pid for heartbeat in read_heartbeats(folder / RUN)}.isdisjoint(first.values()), launcher
    )
    wait_until(lambda: step(folder) > 50, launcher)
    launcher.send_signal(signal.SIGTERM)
    out, _ = launcher.communicate(timeout=100)
    assert launcher.returncode != 0
    assert "goes on from runs/launched/last.ckpt" in out
    assert "; go on with the same command and --ckpt_path last" in out
    again = start(COMMAND, PROCESSES="2")
    out, _ = again.communicate(timeout=100)
    assert again.returncode == 0, out
    assert_same_weights(folder, undisturbed)
    assert [(heartbeat.rank, heartbeat.phase) for heartbeat in read_heartbeats(folder / RUN)] == [
        (0, "ended"),
        (1, "ended"),
    ]
