"""What can be said of the launch files without the machines that they are for."""

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathmoe.training.arguments import expand, option_values
from pathmoe.training.heartbeat import main as heartbeat_status
from tests.launch.conftest import ROOT

FOLDER = ROOT / "docs" / "launch"
SCRIPTS = ("one_node.sh", "slurm.sbatch")


def tool(name: str) -> str:
    """A program that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def by_kind() -> dict[str, list[dict[str, Any]]]:
    """The objects of the Kubernetes file."""
    objects: dict[str, list[dict[str, Any]]] = {}
    for content in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()):
        objects.setdefault(content["kind"], []).append(content)
    return objects


def container() -> dict[str, Any]:
    (job,) = by_kind()["Job"]
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_every_file_is_known_to_the_tests_and_to_the_page() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {*SCRIPTS, "kubernetes.yaml"}
    page = (ROOT / "docs" / "launch.md").read_text()
    assert all(f"launch/{name}" in page for name in files)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)
    assert "\nset -euo pipefail\n" in (FOLDER / name).read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_has_nothing_to_say(name: str) -> None:
    found = subprocess.run([tool("shellcheck"), str(FOLDER / name)], capture_output=True, text=True)
    assert found.stdout == ""


def test_the_kubernetes_objects_are_as_their_schemas_say() -> None:
    file = str(FOLDER / "kubernetes.yaml")
    found = subprocess.run([tool("kubernetes-validate"), "--strict", file], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("statuses", "crashes", "ends_with", "queued"),
    [
        ([0], 0, 0, False), ([138], 0, 0, True), ([138, 130], 0, 0, True), ([143], 0, 0, True), ([2], 0, 2, False),
        # When one task fails, srun ends the others by SIGTERM.
        ([2, 143], 0, 2, False), ([3, 143], 0, 0, True), ([137, 3, 143], 9, 0, True), ([1, 143], 10, 1, False),
        # Tasks that were killed with their shells leave nothing.
        ([], 0, 0, True), ([], 10, 1, False), ([138], 10, 0, True),
    ],
)  # fmt: skip
def test_a_job_of_slurm_is_queued_again_when_there_is_more_to_do(
    statuses: list[int], crashes: int, ends_with: int, queued: bool, tmp_path: Path
) -> None:
    """The real script, with an srun that starts a task for each status, and a scontrol that notes what it is told."""
    programs = tmp_path / "bin"
    programs.mkdir()
    starts = "".join(f'STATUS={status} "${{@:2}}" || true\n' for status in statuses)
    (programs / "srun").write_text(f"#!/usr/bin/env bash\n{starts}exit 143\n")
    (programs / "python").write_text('#!/usr/bin/env bash\nexit "$STATUS"\n')
    (programs / "scontrol").write_text('#!/usr/bin/env bash\necho "$@" >queued\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    if crashes:
        (tmp_path / "slurm-7.crashes").write_text("crashed\n" * crashes)
    path = os.pathsep.join([str(programs), os.environ["PATH"]])
    environment = os.environ | {
        "PATH": path, "SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2"
    }  # fmt: skip
    ended = subprocess.run(["bash", str(FOLDER / "slurm.sbatch"), "--config", "tiny"], cwd=tmp_path, env=environment)
    assert ended.returncode == ends_with
    assert (tmp_path / "queued").exists() == queued
    if queued:
        assert (tmp_path / "queued").read_text() == "requeue 7\n"
    assert not queued or (tmp_path / "slurm-7.crashes").exists() != ({138, 143} >= set(statuses) - {130} != set())


def test_slurm_warns_with_a_signal_that_stops_a_run() -> None:
    assert "#SBATCH --signal=USR1@" in (FOLDER / "slurm.sbatch").read_text()


def test_the_pods_of_kubernetes_meet_and_have_what_they_mount() -> None:
    objects = by_kind()
    (service,), (job,) = objects["Service"], objects["Job"]
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "OnFailure"
    # The first pod's name, as an indexed job and a headless service without a cluster IP give it.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert pod["subdomain"] == service["metadata"]["name"]
    endpoint = f"{job['metadata']['name']}-0.{service['metadata']['name']}:29400"
    assert f"--rdzv-endpoint={endpoint}" in container()["command"]
    claims = {claim["metadata"]["name"] for claim in objects["PersistentVolumeClaim"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == volumes.keys()
    claimed = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    assert claimed == claims
    for claim in objects["PersistentVolumeClaim"]:
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "all pods write into the run"


def test_the_numbers_of_the_kubernetes_file_agree() -> None:
    (job,) = by_kind()["Job"]
    command = container()["command"]
    pods, gpus = job["spec"]["completions"], container()["resources"]["limits"]["nvidia.com/gpu"]
    assert option_values(command, "--nnodes") == option_values(command, "--trainer.num_nodes") == [str(pods)]
    assert option_values(command, "--nproc-per-node") == option_values(command, "--trainer.devices") == [str(gpus)]
    # A pod that is told to go has the time that its processes are given for the checkpoint.
    (seconds,) = option_values(command, "--shutdown-timeout")
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > int(seconds)


def test_the_probes_of_the_kubernetes_file_ask_for_its_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = option_values(container()["command"], "--run_dir")
    for probe in ("startupProbe", "livenessProbe"):
        command = container()[probe]["exec"]["command"]
        assert command[:2] == ["python", "-P"]
        assert (ROOT / command[2]).is_file()
        monkeypatch.chdir(tmp_path)
        (tmp_path / run).mkdir(parents=True, exist_ok=True)
        assert heartbeat_status(command[3:]) == 1, capsys.readouterr().err
        assert capsys.readouterr().out == "rank 0: no heartbeat\n"


def test_the_configurations_that_are_launched_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = container()["command"]
    expanded = expand(command[command.index("train.py") + 1 :])
    assert len(option_values(expanded, "--config")) == 2
    for name in SCRIPTS:
        comments = [line for line in (FOLDER / name).read_text().splitlines() if name in line]
        (words,) = [shlex.split(line.lstrip("# ")) for line in comments]
        configs = option_values(expand(["fit", *words[words.index(f"docs/launch/{name}") + 1 :]]), "--config")
        assert len(configs) >= 2
        assert not (FOLDER / name).stat().st_mode & stat.S_IXUSR, "it is called by its interpreter"
