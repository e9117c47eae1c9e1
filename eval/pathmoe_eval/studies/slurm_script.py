"""A study as a SLURM job array: one task for each run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pathmoe_eval.studies.execution import log_of
from pathmoe_eval.studies.runs import StudyRun

_HEAD = """\
#!/usr/bin/env bash
# {name}: {number} runs, one for each task of the array; from the folder that the study was planned in.
# Before its time is over a task saves, stops and queues itself again. Afterwards: pathmoe-eval study ... --report
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={devices}
#SBATCH --cpus-per-task={threads}
{gpus}#SBATCH --time=24:00:00
#SBATCH --output={logs}/%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300
set -euo pipefail
export OMP_NUM_THREADS={threads}

fit() {{
  local status=0
  srun --kill-on-bad-exit=1 "$@" || status=$?
  case "$status" in
    0) ;;
    {stopped}
      scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
      exit 0
      ;;
    *) exit "$status" ;;
  esac
}}

case "$SLURM_ARRAY_TASK_ID" in
"""
_TAIL = """\
esac
"""


def slurm_script(name: str, runs: Sequence[StudyRun], logs: Path, num_threads: int) -> str:
    """A script for `sbatch` that carries out what runs still lack.

    Nodes and devices are those of the runs' trainer, one task for each device.

    Args:
        name: of the study.
        runs: at least one; those of one key are one task.
        logs: folder of what each run says, where a report looks for it; it must be there.
        num_threads: CPUs of a device.

    Raises:
        ValueError: runs that ask for different nodes or devices, which one array can't have.
    """
    runs = list({run.key: run for run in runs}.values())
    shapes = {tuple(str(run.variant.resolved["trainer"][key]) for key in _OF_THE_JOB): run for run in runs}
    if len(shapes) > 1:
        names = " and ".join(run.variant.name for run in list(shapes.values())[:2])
        raise ValueError(
            f"trainer.num_nodes, devices and accelerator of {names} must be the same for --slurm, whose tasks are "
            "alike; make a study of each"
        )
    ((nodes, devices, accelerator),) = shapes
    devices = devices if devices.isdigit() else "1"
    gpus = "" if accelerator == "cpu" else f"#SBATCH --gpus-per-node={devices}\n"
    head = _HEAD.format(
        name=shlex.quote(name), number=len(runs), last=len(runs) - 1, nodes=nodes, devices=devices,
        threads=num_threads, gpus=gpus, logs=shlex.quote(str(logs)),
        stopped=_STOPPED_ALONE if (nodes, devices) == ("1", "1") else _STOPPED_TOGETHER,
    )  # fmt: skip
    tasks = [_task(place, run, log_of(logs, run)) for place, run in enumerate(runs)]
    return head + "".join(tasks) + _TAIL


_OF_THE_JOB = ("num_nodes", "devices", "accelerator")

_STOPPED_ALONE = "138 | 143) # stopped by SIGUSR1 or SIGTERM"
_STOPPED_TOGETHER = "138) # stopped by SIGUSR1; with SIGTERM srun ends the others after one has crashed"


def _task(place: int, run: StudyRun, log: Path) -> str:
    lines = [f"  {place}) # {run.name}", f"    exec >>{shlex.quote(str(log))} 2>&1"]
    for arguments in run.commands():
        prefix = "fit " if "fit" in arguments[:3] else ""
        lines.append(f"    {prefix}{shlex.join([sys.executable, *arguments])}")
    return "\n".join([*lines, "    ;;", ""])
