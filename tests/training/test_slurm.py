"""Jobs of SLURM, as its variables tell of them; tests/launch/test_slurm.py runs one."""

from typing import Any

import pytest

from pathmoe.training.slurm import SlurmJob, slurm_plugins

JOB = {"SLURM_NTASKS": "16", "SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "pathmoe"}


def set_job(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in (JOB | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


def test_outside_of_a_job_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    set_job(monkeypatch, **dict.fromkeys(JOB))
    assert slurm_plugins() == []


def test_a_shell_in_a_job_is_no_task_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_job(monkeypatch, SLURM_JOB_NAME="interactive")
    assert slurm_plugins() == []


def test_torchrun_within_a_job_knows_its_ranks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    set_job(monkeypatch)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert slurm_plugins() == []


def test_a_task_leaves_requeueing_to_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    set_job(monkeypatch)
    (job,) = slurm_plugins()
    assert not job.auto_requeue
    assert job.world_size() == 16
    job.validate_settings(num_devices=8, num_nodes=2)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        (
            {"num_devices": 1, "num_nodes": 2},
            "trainer.devices (1) must be the job's SLURM_NTASKS_PER_NODE (8); give --trainer.devices 8 after the "
            "configurations",
        ),
        (
            {"num_devices": 8, "num_nodes": 1},
            "trainer.num_nodes (1) must be the job's SLURM_NNODES (2); give --trainer.num_nodes 2 after the "
            "configurations",
        ),
    ],
)
def test_other_sizes_than_the_jobs_are_refused(
    sizes: dict[str, int], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_job(monkeypatch)
    with pytest.raises(ValueError) as error:
        SlurmJob().validate_settings(**sizes)
    assert str(error.value) == line


def test_the_command_line_says_what_a_job_lacks(monkeypatch: pytest.MonkeyPatch, fit: Any) -> None:
    set_job(monkeypatch, SLURM_NTASKS_PER_NODE=None)
    ended = fit()
    line = "SLURM_NTASKS (16) must come with SLURM_NTASKS_PER_NODE; ask SLURM for --ntasks-per-node instead of --ntasks"
    assert (ended.status, ended.err) == (2, f"error: {line}\n")
