"""Runs carried out as processes, some at a time; one that fails does not stop the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pathmoe_eval.studies.runs import StudyRun

_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_SAVE = 60.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run has ended."""

    run: StudyRun
    error: str
    """The last line of its error; empty where there was none."""
    seconds: float


def carry_out(
    runs: Sequence[StudyRun], logs: Path, num_jobs: int, num_threads: int, tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Train and evaluate what runs still lack, each in processes of its own.

    A signal that ends this process ends those too: they are asked once to save what they have, so that the same call
    goes on from there.

    Args:
        runs: those of one key are one run, carried out once.
        logs: folder for what each run says.
        num_jobs: runs at a time.
        num_threads: of each run.
        tell: called with each run that has ended.
    """
    waiting = list({run.key: run for run in runs}.values())
    logs.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with _ending_processes() as active:
        while waiting or active:
            while waiting and len(active) < num_jobs:
                active.append(_Job(waiting.pop(0), logs, num_threads))
            for job in [job for job in active if not job.goes_on()]:
                active.remove(job)
                outcomes.append(job.outcome())
                tell(outcomes[-1])
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return outcomes


class _Job:
    """The commands of a run, one process after the other."""

    def __init__(self, run: StudyRun, logs: Path, num_threads: int) -> None:
        self.run = run
        self._log = log_of(logs, run)
        self._environment = os.environ | {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
        self._command: list[str] = []
        self._error = ""
        self._started = time.monotonic()
        self._stream: TextIO = self._log.open("w", encoding="utf-8")
        self.process = self._next()

    def _next(self) -> subprocess.Popen[bytes] | None:
        """The process of what the run lacks most urgently; None where it lacks nothing, or nothing has come of that."""
        commands = self.run.commands()
        if not commands:
            return None
        if commands[0] == self._command:
            self._error = f"ended before its end: {self.run.state()}"
            return None
        self._command = commands[0]
        # A session of its own, so that Ctrl-C reaches it once, through us: a second one would not let it save.
        return subprocess.Popen(
            [sys.executable, *self._command], stdout=self._stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=self._environment, start_new_session=True,
        )  # fmt: skip

    def goes_on(self) -> bool:
        """Whether there is something left, after the next process was started where one has done its part."""
        while self.process is not None and (status := self.process.poll()) is not None:
            if status:
                self._stream.flush()
                self._error = error_in(self._log) or f"ended with status {status}"
                return False
            self.process = self._next()
        return self.process is not None

    def outcome(self) -> Outcome:
        """What came of it."""
        self._stream.close()
        return Outcome(run=self.run, error=self._error, seconds=time.monotonic() - self._started)

    def end(self) -> None:
        """Leave nothing of it behind, its ranks included."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._stream.close()


@contextmanager
def _ending_processes() -> Iterator[list[_Job]]:
    """Jobs, whose processes end when the block does, whatever ends it."""
    jobs: list[_Job] = []
    try:
        yield jobs
    finally:
        processes = [job.process for job in jobs if job.process is not None]
        try:
            for process in processes:
                process.terminate()
            until = time.monotonic() + _SECONDS_TO_SAVE
            for process in processes:
                process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            for job in jobs:
                job.end()


def log_of(logs: Path, run: StudyRun) -> Path:
    """The file of what a run has said."""
    return logs / f"{run.variant.name}-seed{run.seed}-{run.key[:8]}.log"


def error_in(log: Path) -> str:
    """The last line of a log that says `error:`, else that of a traceback; empty where neither is there."""
    if not log.is_file():
        return ""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else ""
