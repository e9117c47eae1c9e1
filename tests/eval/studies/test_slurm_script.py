"""The job array of a study: bash that ShellCheck accepts, and whose tasks do what they have to under a small SLURM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pathmoe_eval.studies.plan import plan_variants
from pathmoe_eval.studies.runs import StudyRun, study_runs
from pathmoe_eval.studies.slurm_script import slurm_script
from pathmoe_eval.studies.study import read_study
from tests.eval.studies.conftest import WriteStudy

LOGS = Path("runs/studies/a b/logs")


def planned(file: Path) -> list[StudyRun]:
    study = read_study(str(file))
    return study_runs(study, plan_variants(study))


@pytest.fixture
def script(write_study: WriteStudy) -> str:
    overrides = {"model.config.layers_per_router": [2, 2]}
    variants = {"indep": {"configs": ["indep"]}, "b": {"configs": ["indep"], "overrides": overrides}}
    return slurm_script("mine", planned(write_study(variants=variants)), LOGS, 3)


def test_it_is_bash_that_shellcheck_accepts(script: str, folder: Path) -> None:
    (folder / "study.sbatch").write_text(script)
    subprocess.run(["bash", "-n", "study.sbatch"], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run([shellcheck, "study.sbatch"], capture_output=True, text=True)
    assert found.stdout == ""


def test_it_asks_for_a_task_a_run(script: str) -> None:
    for line in ("--job-name=mine", "--array=0-3", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=3"):
        assert f"#SBATCH {line}\n" in script
    assert "gpus" not in script
    assert "#SBATCH --output='runs/studies/a b/logs'/%a.out\n" in script


def carried_out(script: str, folder: Path, task: str, fit_status: int) -> int:
    """The exit status of a task whose training ends with that one; the file `said` has what it calls."""
    programs = folder / "bin"
    programs.mkdir()
    for name, body in {
        "srun": f'shift; "$@"; exit {fit_status}', "scontrol": 'echo "scontrol $*" >> said',
        "python": 'echo "$*" >> said; echo a word',
    }.items():  # fmt: skip
        (programs / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (programs / name).chmod(0o755)
    assert f" {sys.executable} -m pathmoe fit " in script
    (folder / "study.sbatch").write_text(script.replace(sys.executable, "python"))
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_JOB_ID": "77",
    }  # fmt: skip
    LOGS.mkdir(parents=True)
    return subprocess.run(["bash", "study.sbatch"], env=environment).returncode


@pytest.mark.parametrize(
    ("fit_status", "requeued", "status"), [(0, False, 0), (138, True, 0), (143, True, 0), (2, False, 2)]
)
def test_a_task_trains_its_run_and_evaluates_it(
    script: str, folder: Path, fit_status: int, requeued: bool, status: int
) -> None:
    assert carried_out(script, folder, "3", fit_status) == status
    fit, paths = planned(folder / "mine.yaml")[3].commands()
    expected = [" ".join(fit)]
    if fit_status == 0:
        expected.append(" ".join(paths))
    if requeued:
        expected.append("scontrol requeue 77_3")
    assert (folder / "said").read_text().splitlines() == expected
    assert next(LOGS.glob("b-seed1-*.log")).read_text().startswith("a word\n")


def test_gpus_are_those_of_the_trainer(write_study: WriteStudy) -> None:
    overrides = {"trainer.accelerator": "gpu", "trainer.devices": 4, "trainer.num_nodes": 2}
    script = slurm_script("mine", planned(write_study(overrides=overrides)), Path("logs"), 8)
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"):
        assert f"#SBATCH {line}\n" in script


@pytest.mark.parametrize(("fit_status", "requeued"), [(138, True), (143, False)])
def test_of_several_tasks_one_that_srun_ended_does_not_start_the_run_again(
    write_study: WriteStudy, folder: Path, fit_status: int, requeued: bool
) -> None:
    overrides = {"trainer.devices": 2, "trainer.accumulate_grad_batches": 1}
    script = slurm_script("mine", planned(write_study(overrides=overrides)), LOGS, 1)
    assert carried_out(script, folder, "0", fit_status) == (0 if requeued else fit_status)
    assert ("scontrol requeue 77_0" in (folder / "said").read_text()) == requeued


def test_runs_of_different_shape_need_an_array_each(write_study: WriteStudy) -> None:
    variants = {"indep": {}, "b": {"overrides": {"trainer.devices": 2, "trainer.accumulate_grad_batches": 1}}}
    runs = planned(write_study(variants=variants, allow_other_data=True))
    with pytest.raises(
        ValueError, match=r"num_nodes, devices and accelerator of indep and b must be the same for --slurm"
    ):
        slurm_script("mine", runs, Path("logs"), 1)
