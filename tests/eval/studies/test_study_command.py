"""`pathmoe-eval study`: real runs in processes, killed and gone on with, one variant failing; and what is refused."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathmoe_eval.cli import main
from pathmoe_eval.studies.figures import FIGURES
from pathmoe_eval.studies.plan import plan_variants
from pathmoe_eval.studies.results import read_result
from pathmoe_eval.studies.run_key import Origin, run_key
from pathmoe_eval.studies.run_result import keep_result
from pathmoe_eval.studies.runs import study_runs
from pathmoe_eval.studies.study import read_study
from tests.eval.studies.conftest import MINI, STUDY, WriteStudy
from tests.eval.studies.test_results import write_run

DIVERGING = {"configs": ["path_b4"], "overrides": {"model.optimizer.lr": 1e30}}


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
        ({}, "--baseline omni", "--baseline (omni) must be one of the variants indep, path_b4; change it"),
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
    assert call("--report", "--baseline", "path_b4") == 0
    shown = capsys.readouterr()
    assert "compared with path_b4" in Path("runs/studies/mine/report.md").read_text()
    assert "runs/studies/mine/index.html: mine;" in shown.out and "4 of 4 runs are not finished" in shown.out
    assert "indep, seed 0: not begun" in Path("runs/studies/mine/report.md").read_text()
    assert not Path("runs/study-runs").exists()


def test_a_damaged_run_is_told_and_the_rest_reported(
    write_study: WriteStudy, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    study = read_study(str(write_study(evaluation={"perturbation_document_tokens": 40})))
    damaged, whole, *_ = study_runs(study, plan_variants(study))
    for run in (damaged, whole):
        write_run(run, 1.5)
    report = damaged.evaluation_folder / "report.json"
    report.write_text(report.read_text().replace('"data_hash"', '"hash"'))
    assert call("--report") == 1
    assert "3 of 4 runs are not finished" in capsys.readouterr().out
    assert f"damaged: {damaged.folder} (KeyError('data_hash')) must be a whole run" in runs()[0]["state"]
    assert (runs()[1]["state"], runs()[1]["figures"]["bits_per_byte"]) == ("finished", 1.5)


def test_a_damaged_result_is_told_and_its_run_would_be_carried_out(
    write_study: WriteStudy, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    study = read_study(str(write_study()))
    run = study_runs(study, plan_variants(study))[0]
    run.result_file.parent.mkdir(parents=True)
    run.result_file.write_text('{"format": 1')
    assert call("--report") == 1
    assert f"damaged: {run.result_file} (damaged) must be a result" in runs()[0]["state"]
    assert call("--slurm") == 0
    assert "fit --config=" in capsys.readouterr().out


def test_results_of_other_data_are_reported_where_there_are_none_of_this(
    write_study: WriteStudy, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    study = read_study(str(write_study(evaluation={"perturbation_document_tokens": 40})))
    origin = Origin(train="a", validation="b", tokenizer="c", version="0.0.1")
    data = {
        "source": "elsewhere", "tokenizer_sha256": "c", "train": {"content_sha256": "a", "targets": 9},
        "validation": {"content_sha256": "b", "documents": 2},
    }  # fmt: skip
    (run, *_), variants = study_runs(study, plan_variants(study)), plan_variants(study)
    elsewhere = replace(run, key=run_key(variants[0].resolved, 0, origin), results=Path("kept"))
    write_run(elsewhere, 1.5)
    result = read_result(elsewhere, renew=True)
    assert result is not None
    keep_result(elsewhere.result_file, replace(result, data=data, circumstances={"pathmoe": ["0.0.1"]}))
    shutil.rmtree(elsewhere.folder)
    assert call("--report", "--results", "kept") == 0
    shown = capsys.readouterr()
    assert "note: reporting runs in kept on other data (of another interpreter) or versions\n" in shown.err
    assert "3 of 4 runs are not finished" in shown.out
    assert (runs()[0]["state"], runs()[0]["figures"]["bits_per_byte"]) == ("finished", 1.5)


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
@pytest.mark.timeout(600)  # a dozen processes, one after the other where the machine is busy
def test_a_study_that_was_killed_goes_on_and_a_failing_variant_does_not_end_it(
    write_study: WriteStudy, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    # Long enough to be stopped in the middle.
    evaluation = {"max_tokens": 400, "perturbation_document_tokens": 3, "geometry_document_tokens": 20}
    changes: dict[str, Any] = {"tokens": 64 * 150, "evaluation": evaluation, "seeds": [0]}
    write_study(**changes)
    settings = MINI | {"trainer": MINI["trainer"] | {"val_check_interval": 50}}
    Path("mini.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "pathmoe_eval", "study", "--config", "mine.yaml", "--threads", "1"]
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

    assert call("--report") == 0
    assert "2 of 2 runs are not finished" in capsys.readouterr().out
    first, *others = runs()
    assert first["folder"] == str(begun[0].parent)
    assert first["state"].startswith("at step ") and first["state"].endswith(" of 150")
    assert {run["state"] for run in others} == {"not begun"}

    assert call("--jobs", "2", "--threads", "1") == 0
    assert "not finished" not in capsys.readouterr().out
    log = next(Path("runs/studies/mine/logs").glob("indep-seed0-*.log")).read_text()
    assert f"run: {first['folder']}, goes on from {first['folder']}/last.ckpt" in log
    assert {run["state"] for run in runs()} == {"finished"}
    # Of independent routers no layers share one.
    within_blocks = {
        "shared_agreement", "shared_agreement_null", "predicted_agreement", "prediction_error", "retained",
        "seen_overlap", "seen_overlap_null", "shared_step_row", "shared_step_null",
    }  # fmt: skip
    for run in runs():
        lacking = within_blocks if run["variant"] == "indep" else set()
        assert run["figures"].keys() == {figure.key for figure in FIGURES} - lacking
        assert [tokens for tokens, _ in run["curve"]] == [64 * 50, 64 * 100, 64 * 150]

    # One more variant, which fails: the runs that are there are not trained again.
    trained = {path: path.stat().st_mtime_ns for path in Path("runs/study-runs").glob("*/last.ckpt")}
    write_study(**changes, variants={"diverging": DIVERGING} | STUDY["variants"])
    assert call("--threads", "1") == 1
    shown = capsys.readouterr()
    assert shown.err.count(" failed: ") == 1 and "1 of 1: diverging, seed 0 failed: " in shown.err
    assert "1 of 3 runs are not finished" in shown.out
    assert trained.items() <= {
        path: path.stat().st_mtime_ns for path in Path("runs/study-runs").glob("*/last.ckpt")
    }.items()  # fmt: skip
    text = Path("runs/studies/mine/report.md").read_text()
    assert "Not finished, 1 of 3 runs: diverging, seed 0: " in text and "last error: " in text
    assert [run["state"] for run in runs()][1:] == ["finished", "finished"]


def runs() -> list[dict[str, Any]]:
    """The runs of the study that was reported last."""
    found: list[dict[str, Any]] = json.loads(Path("runs/studies/mine/study.json").read_text())["runs"]
    return found
