"""What can be said of the launch files without the machines that they are for."""

import os
import shlex
import signal
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


def test_a_stopped_job_of_slurm_is_queued_again() -> None:
    script = (FOLDER / "slurm.sbatch").read_text()
    statuses = [128 + signal.SIGUSR1, 128 + signal.SIGTERM]
    assert f"  {' | '.join(map(str, statuses))})" in script
    assert "#SBATCH --signal=USR1@" in script


@pytest.mark.parametrize(("status", "starts", "ends_with"), [(0, 0, 0), (2, 0, 2), (1, 10, 1)])
def test_what_is_over_is_not_queued_again(status: int, starts: int, ends_with: int) -> None:
    # The end of the script, which asks SLURM for nothing in these cases.
    script = (FOLDER / "slurm.sbatch").read_text().partition("|| status=$?\n")[2]
    environment = os.environ | {"SLURM_RESTART_COUNT": str(starts), "SLURM_JOB_ID": "7"}
    ended = subprocess.run(["bash", "-euo", "pipefail", "-c", f"status={status}\n{script}"], env=environment)
    assert ended.returncode == ends_with


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
