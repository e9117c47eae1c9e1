"""Runs as processes: so many at a time, failures that stop nothing, and nothing left behind. The processes are real."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pathmoe_eval.studies.execution import Outcome, carry_out, error_in, log_of

# Waits until two are there, which is as long as the test when there is one at a time.
MEET = """
import os, pathlib, sys, time
here = pathlib.Path("here"); mine = here / str(os.getpid()); mine.touch()
until = time.monotonic() + float(sys.argv[1])
while len(list(here.iterdir())) < 2 and time.monotonic() < until: time.sleep(0.01)
print("together", len(list(here.iterdir())))
time.sleep(0.3)
mine.unlink()
"""
# Counts its signals, and ends a while after the first.
SAVE = """
import pathlib, signal, time
count = 0
def save(*_):
    global count; count += 1
for one in (signal.SIGTERM, signal.SIGINT): signal.signal(one, save)
pathlib.Path("started").touch()
while not count: time.sleep(0.01)
time.sleep(0.5)
pathlib.Path("saved").write_text(str(count))
"""


@dataclass(frozen=True)
class Run:
    """What `carry_out` needs of a run."""

    name: str
    code: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    seed: int = 0

    @property
    def key(self) -> str:
        return self.name

    @property
    def variant(self) -> Any:
        return SimpleNamespace(name=self.name)

    def commands(self) -> list[list[str]]:
        done = {place: f"done-{self.name}-{place}" for place in range(len(self.code))}
        return [
            ["-c", f"{code}\nopen('{done[place]}', 'w')", *self.arguments]
            for place, code in enumerate(self.code)
            if not Path(done[place]).exists()
        ]

    def state(self) -> str:
        return "at step 3 of 10"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()


def carried_out(runs: list[Run], num_jobs: int = 1) -> dict[str, Outcome]:
    told: list[Outcome] = []
    outcomes = carry_out(runs, Path("logs"), num_jobs, 3, told.append)  # type: ignore[arg-type]  # a run in few words
    assert told == outcomes
    return {outcome.run.name: outcome for outcome in outcomes}


def said(run: Run) -> str:
    return log_of(Path("logs"), run).read_text()  # type: ignore[arg-type]  # a run in few words


def test_commands_follow_each_other_in_one_log_with_their_threads() -> None:
    run = Run("a", ("print('one')", "import os; print('two', os.environ['OMP_NUM_THREADS'])"))
    assert carried_out([run])["a"].error == ""
    assert said(run) == "one\ntwo 3\n"


def test_two_at_a_time_meet_and_no_third_one() -> None:
    runs = [Run(str(number), (MEET,), ("60",)) for number in range(4)]
    assert {outcome.error for outcome in carried_out(runs, num_jobs=2).values()} == {""}
    assert {said(run) for run in runs} == {"together 2\n"}


def test_one_at_a_time_is_alone() -> None:
    runs = [Run(str(number), (MEET,), ("0.2",)) for number in range(2)]
    carried_out(runs)
    assert {said(run) for run in runs} == {"together 1\n"}


def test_a_failure_ends_its_own_run_alone() -> None:
    failing = Run("bad", ("import sys; print('x'); sys.stderr.write('error: key (1) must be 2\\n'); sys.exit(2)",
                          "print('never')"))  # fmt: skip
    raising = Run("raising", ("raise KeyError('why')",))
    killed = Run("killed", ("import os; os.kill(os.getpid(), 9)",))
    outcomes = carried_out([failing, raising, killed, Run("good", ("print('y')",))])
    assert {name: outcome.error for name, outcome in outcomes.items()} == {
        "bad": "key (1) must be 2", "raising": "KeyError: 'why'", "killed": "ended with status -9", "good": "",
    }  # fmt: skip
    assert "never" not in said(failing)


def test_a_process_that_leaves_its_part_undone_has_failed() -> None:
    early = Run("early", ("import os; print('x', flush=True); os._exit(0)", "print('never')"))
    outcomes = carried_out([early, Run("good", ("print('y')",))])
    assert outcomes["early"].error == "ended before its end: at step 3 of 10" and not outcomes["good"].error
    assert said(early) == "x\n"


def test_one_run_of_two_names_is_carried_out_once() -> None:
    run = Run("a", ("open('log', 'a').write('x')",))
    assert len(carried_out([run, run])) == 1
    assert Path("log").read_text() == "x"


def test_what_ends_the_call_ends_the_processes_once_they_have_saved() -> None:
    def tell(outcome: Outcome) -> None:
        while not Path("started").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    runs = [Run("long", (SAVE, "open('second', 'w')")), Run("short", ("",))]
    with pytest.raises(KeyboardInterrupt):
        carry_out(runs, Path("logs"), 2, 1, tell)  # type: ignore[arg-type]  # runs in few words
    assert Path("saved").read_text() == "1", "one signal, since a second would not let it save"
    assert not Path("second").exists()


def test_a_signal_of_a_terminal_does_not_reach_the_processes_twice() -> None:
    code = (
        "from pathlib import Path; from tests.eval.studies.test_execution import Run, SAVE, carry_out;"
        "carry_out([Run('long', (SAVE,))], Path('logs'), 1, 1, print)"
    )
    root = str(Path(__file__).resolve().parents[3])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE,
                               env=environment)  # fmt: skip
    while not Path("started").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert Path("saved").read_text() == "1"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", ""), ("all is well\n", ""), ("error: a (1) must be 2\nmore\n", "a (1) must be 2"),
        ("Traceback (most recent call last):\n  x\nValueError: why\n\n", "ValueError: why"),
    ],
)  # fmt: skip
def test_the_error_of_a_log(log: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text(log)
    assert error_in(tmp_path / "x.log") == line
    assert error_in(tmp_path / "none.log") == ""
