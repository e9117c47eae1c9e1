"""What `pathmoe-eval study` does: from the file of a study to its runs and its report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pathmoe_eval.commands import now
from pathmoe_eval.studies.comparison import compare_variants
from pathmoe_eval.studies.execution import Outcome, carry_out, error_in, log_of
from pathmoe_eval.studies.plan import plan_lines, plan_variants
from pathmoe_eval.studies.results import read_result
from pathmoe_eval.studies.run_result import RunResult
from pathmoe_eval.studies.runs import FINISHED, STUDIES, StudyRun, kept_runs, study_runs
from pathmoe_eval.studies.slurm_script import slurm_script
from pathmoe_eval.studies.study import Study
from pathmoe_eval.studies.study_report import MARKDOWN_FILE, PAGE_FILE, StudyReport, summary_lines, write_study_report

_LOGS = "logs"

Mode = Literal["carry out", "report", "script"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How runs are carried out; the fields are options of the same names."""

    jobs: int = 1
    """Runs at a time."""
    threads: int | None = None
    """CPU threads of each run, on which the last bits of its numbers depend; None shares out those of this machine, or
    takes one in a job array."""

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        for name in ("jobs", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} ({value}) must be at least 1; raise it")

    @property
    def threads_here(self) -> int:
        """Threads of each run on this machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or max(1, cores // self.jobs)


def study_command(
    study: Study,
    execution: Execution,
    mode: Mode,
    results: Path,
    out: Path | None,
    command: str,
) -> None:
    """Train and evaluate what a study lacks, then write its report; or print a SLURM script; or only report.

    Args:
        study: as `read_study` gives it.
        execution: how runs are carried out.
        mode: whether to carry out what is missing and report, only to report what is there, or to print the script.
        results: folder of what is kept of finished runs, which are not carried out again.
        out: folder of the report and of the logs; None for one under `runs/studies/`.
        command: the command line, for the report.

    Raises:
        ValueError: a study that can't be, as `plan_variants` says.
        SystemExit: with status 1, after the report, where runs have failed or are damaged.
    """
    variants = plan_variants(study)
    sys.stderr.write("".join(f"{line}\n" for line in plan_lines(study, variants)))
    runs = study_runs(study, variants, results)
    folder = STUDIES / study.name if out is None else out
    left = [run for run in runs if not run.is_finished]
    if len(left) == len(runs) and mode == "report" and (kept := kept_runs(study, variants, results)):
        sys.stderr.write(f"note: reporting runs in {results} on other data (of another interpreter) or versions\n")
        runs = kept
    elif len(left) == len(runs) and (others := len(list(results.glob("*.json")))):
        sys.stderr.write(
            f"note: {results} has {others} results, but none of these runs: they are of other data (another "
            "interpreter's library, too), settings or versions\n"
        )
    if mode == "script":
        if not left:
            sys.stderr.write("note: all runs are finished; the report is written by the same command with --report\n")
            return
        (folder / _LOGS).mkdir(parents=True, exist_ok=True)
        print(slurm_script(study.name, left, folder / _LOGS, execution.threads or 1), end="")
        return
    failed = bool(mode == "carry out" and _carry_out(study, left, folder, execution))
    results_there, damaged = _read_results(runs, renew=mode == "carry out")
    report = StudyReport(
        study=study,
        variants=variants,
        runs=runs,
        results=results_there,
        states={run.key: damaged.get(run.key) or _state(run, folder) for run in runs},
        command=command,
        created=now(),
    )
    compared = compare_variants(report.results, list(study.variants), study.baselines)
    write_study_report(folder, report, compared)
    for line in summary_lines(compared[study.baseline]):
        print(line)
    missing = len(runs) - len(report.results)
    unfinished = f"; {missing} of {len(runs)} runs are not finished, as it says" if missing else ""
    print(f"{folder / PAGE_FILE}: {study.name}; the tables are in {folder / MARKDOWN_FILE}, too{unfinished}")
    if failed or damaged:
        raise SystemExit(1)


def _read_results(runs: Sequence[StudyRun], *, renew: bool) -> tuple[list[RunResult], dict[str, str]]:
    """Results of the runs that are finished, in their order, and by key what is wrong with those that are damaged."""
    results, damaged = [], {}
    for run in runs:
        try:
            result = read_result(run, renew=renew)
        except ValueError as error:
            damaged[run.key] = f"damaged: {error}"
        else:
            results += [] if result is None else [result]
    return results, damaged


def _state(run: StudyRun, folder: Path) -> str:
    state = run.state()
    error = "" if state == FINISHED else error_in(log_of(folder / _LOGS, run))
    return f"{state}, last error: {error}" if error else state


def _carry_out(study: Study, left: list[StudyRun], folder: Path, execution: Execution) -> list[Outcome]:
    """Carry out runs, telling of each that has ended; returns those that failed."""
    number = len({run.key for run in left})
    ended: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        try:
            read_result(outcome.run, renew=True)  # which keeps it, whatever becomes of the others
        except ValueError as error:
            outcome = replace(outcome, error=outcome.error or str(error))
        ended.append(outcome)
        place = f"{len(ended)} of {number}"
        if outcome.error:
            log = log_of(folder / _LOGS, outcome.run)
            sys.stderr.write(f"{place}: {outcome.run.name} failed: {outcome.error} (all of it is in {log})\n")
        else:
            print(f"{place}: {outcome.run.name} finished in {outcome.seconds:,.0f} s", flush=True)

    carry_out(left, folder / _LOGS, execution.jobs, execution.threads_here, tell)
    return [outcome for outcome in ended if outcome.error]
