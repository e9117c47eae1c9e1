"""`pathmoe-eval study`: real runs in processes, killed and gone on with, one variant failing; and what is refused."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathmoe_eval.cli import main
from pathmoe_eval.studies.figures import FIGURES
from tests.eval.studies.conftest import MINI, WriteStudy

FAILING = {
    "indep": {"configs": ["indep"]},
    "path_b4": {"configs": ["path_b4"]},
    "diverging": {"configs": ["path_b4"], "overrides": {"model.optimizer.lr": 1e30}},
}


def test_help_names_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "study", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "--slurm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "options", "line"),
    [
        ({"seeds": []}, "", "seeds ([]) in mine.yaml must name at least one seed, such as [0, 1, 2]; add it"),
        ({"baseline": "omni"}, "", "baseline (omni) in mine.yaml must be one of the variants indep, path_b4"),
        ({"variants": {"indep": {}, "b": {"overrides": {"data.sequence_length": 16}}}}, "--report",
         "variants.b: data.sequence_length (16) must be that of indep (32), since runs are compared on the same data "
         "in the same order; take it out, or set allow_other_data: true"),
        ({}, "--jobs 0", "--jobs (0) must be at least 1; raise it"),
        ({}, "--threads 0", "--threads (0) must be at least 1; raise it"),
        ({}, "--report --slurm",
         "--slurm (true) must not be given with --report, which carries out nothing; leave one out"),
        ({}, "--out mine.yaml", "--out (mine.yaml) must be a folder, but is a file; choose another"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    changes: dict[str, Any],
    options: str,
    line: str,
    write_study: WriteStudy,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_study(**changes)
    monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "study", "--config", "mine.yaml", *options.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (2, f"error: {line}\n")
    assert not Path("runs").exists()


@pytest.fixture
def call(write_study: WriteStudy, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls the command in this process; returns its status."""

    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "study", "--config", "mine.yaml", *options])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def test_a_study_of_which_nothing_was_trained_is_reported(
    write_study: WriteStudy,
    call: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_study()
    assert call("--report") == 0
    shown = capsys.readouterr()
    assert "runs/studies/mine/index.html: mine;" in shown.out and "4 of 4 runs are not finished" in shown.out
    assert "indep, seed 0: not begun" in Path("runs/studies/mine/report.md").read_text()
    assert not Path("runs/study-runs").exists()


def test_a_script_is_printed_and_nothing_trained(
    write_study: WriteStudy,
    call: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_study()
    assert call("--slurm", "--threads", "2") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("#!/usr/bin/env bash\n") and shown.err.startswith("mine: 2 variants x 2 seeds")
    assert subprocess.run(["bash", "-n"], input=shown.out, text=True).returncode == 0
    assert Path("runs/studies/mine/logs").is_dir() and not Path("runs/study-runs").exists()


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_and_a_failing_variant_does_not_end_it(
    write_study: WriteStudy,
    call: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Long enough to be stopped in the middle.
    write_study(variants=FAILING, tokens=64 * 150, evaluation={"max_tokens": 400})
    settings = MINI | {"trainer": MINI["trainer"] | {"val_check_interval": 50}}
    Path("mini.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "pathmoe_eval", "study", "--config", "mine.yaml", "--jobs", "2", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (begun := list(Path("runs/study-runs").glob("*/last.ckpt"))):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=100)[0]
    finally:
        process.kill()
    assert (process.returncode, said.splitlines()[-1]) == (128 + signal.SIGTERM, "stopped")
    assert not list(Path("runs/study-runs").glob("*/summary.json"))

    assert call("--report") == 0
    assert "6 of 6 runs are not finished" in capsys.readouterr().out
    stopped = begun[0].parent
    numbers = json.loads(Path("runs/studies/mine/study.json").read_text())
    (state,) = {run["state"] for run in numbers["runs"] if run["folder"] == str(stopped)}
    assert state.startswith("at step ") and state.endswith(" of 150")

    assert call("--jobs", "2", "--threads", "1") == 1, "some have failed"
    shown = capsys.readouterr()
    assert shown.err.count(" failed: ") == 2 and "diverging, seed 0 failed: " in shown.err
    assert "2 of 6 runs are not finished" in shown.out
    logs = {path.stem: path.read_text() for path in Path("runs/studies/mine/logs").iterdir()}
    assert any(f"run: {stopped}, goes on from {stopped}/last.ckpt" in log for log in logs.values())

    numbers = json.loads(Path("runs/studies/mine/study.json").read_text())
    assert {one["name"] for one in numbers["comparison"]} == {"indep", "path_b4"}
    for run in numbers["runs"]:
        if run["variant"] == "diverging":
            assert "last error: " in run["state"] and not run["figures"]
        else:
            left_out = {figure.key for figure in FIGURES} - run["figures"].keys()
            assert left_out == {figure.key for figure in FIGURES if figure.place.startswith("perturbation.")}
            assert [tokens for tokens, _ in run["curve"]] == [64 * 50, 64 * 100, 64 * 150]
    assert "Not finished, 2 of 6 runs: diverging, seed 0: " in Path("runs/studies/mine/report.md").read_text()

    # Another study of the same runs has nothing left to train.
    trained = {path: path.stat().st_mtime_ns for path in Path("runs/study-runs").glob("*/last.ckpt")}
    content = yaml.safe_load(Path("mine.yaml").read_text())
    del content["variants"]["diverging"]
    Path("mine.yaml").write_text(yaml.safe_dump(content | {"baseline": "path_b4"}))
    assert call() == 0
    assert " finished in " not in capsys.readouterr().out
    assert trained == {path: path.stat().st_mtime_ns for path in Path("runs/study-runs").glob("*/last.ckpt")}
