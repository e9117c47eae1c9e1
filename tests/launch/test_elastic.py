"""The launch on Kubernetes: its torchrun command on two nodes, which are agents on this machine, each lost in turn."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pathmoe.training.heartbeat import read_heartbeats
from tests.launch.conftest import RUN, TINY, Start, assert_same_weights, kill, parent, step, wait_until
from tests.launch.test_launch_files import container

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks up processes in /proc")]


def pod_command(port: int) -> list[str]:
    """That of the file, with what is said there of the cluster and the model said of this machine and a tiny one."""
    here = {
        "--nnodes": "2", "--nproc-per-node": "1", "--rdzv-endpoint": f"localhost:{port}", "--trainer.num_nodes": "2",
        "--trainer.devices": "1",
    }  # fmt: skip
    words = [word.partition("=") for word in container()["command"]]
    kept = [word for word in words if word[0] not in ("--config", "--run_dir")]
    return [name + equals + here.get(name, value) for name, equals, value in kept] + TINY


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def lose(agent: "subprocess.Popen[str]", folder: Path) -> None:
    """What the loss of a node does: its agent and its worker are gone, without a word."""
    workers = [beat.pid for beat in read_heartbeats(folder / RUN) if parent(beat.pid) == agent.pid]
    assert len(workers) == 1
    kill(agent.pid, *workers)
    agent.communicate()


def test_a_run_loses_nothing_to_the_loss_of_either_node(start: Start, folder: Path, undisturbed: Path) -> None:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    command = pod_command(port)
    environment = {
        variable["name"]: variable["value"] for variable in container()["env"] if "TORCH" in variable["name"]
    }
    first = start(command, **environment)
    wait_until(lambda: listens(port), first)  # it is where the nodes meet
    second = start(command, **environment)
    wait_until((folder / RUN / "last.ckpt").exists, first, second)

    lose(second, folder)
    before = step(folder)
    second = start(command, **environment)
    wait_until(lambda: step(folder) > before + 50, first, second)

    lose(first, folder)
    second.communicate(timeout=60)
    assert second.returncode != 0, "without the place to meet it ends, for the cluster to start it again"
    agents = [start(command, **environment) for _ in range(2)]
    outputs = [agent.communicate(timeout=120)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert_same_weights(folder, undisturbed)
