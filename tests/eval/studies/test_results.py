"""Results, from folders as runs leave them, and kept; test_study_command reads those of real runs."""

# Shapes: M documents.

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathmoe.training.run_record import RunRecord
from pathmoe_eval.reports.report import FORMAT
from pathmoe_eval.studies.plan import plan_variants
from pathmoe_eval.studies.results import read_result
from pathmoe_eval.studies.run_result import RunResult
from pathmoe_eval.studies.runs import StudyRun, study_runs
from pathmoe_eval.studies.study import read_study
from tests.eval.studies.conftest import DATA, WriteStudy

RUN = {
    "command": "", "model": "m", "data": "held-out", "num_tokens": 90, "data_hash": "abc",
    "versions": {"git_commit": "c", "git_dirty": False},
}  # fmt: skip
DOCUMENTS = [
    {"nats": 6.0, "num_bytes": 4.0, "num_tokens": 3}, {"nats": 0.0, "num_bytes": 0.0, "num_tokens": 0},
    {"nats": 2.0, "num_bytes": 5.0, "num_tokens": 1},
]  # fmt: skip


def write_report(folder: Path, sections: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"format": FORMAT, "run": RUN, "sections": sections}))


def write_run(run: StudyRun, bits_per_byte: float) -> None:
    total = {"perplexity": 7.5, "bits_per_byte": bits_per_byte}
    write_report(run.evaluation_folder, {"perplexity": {"total": total, "by_document": DOCUMENTS}, "load": {}})
    assert run.perturbation_folder is not None
    one = {"intervention": "permutation per layer", "setting": None, "rise_percent": 40.0, "listed_share": None}
    write_report(run.perturbation_folder, {"perturbation": {"perturbed": [one]}})
    (run.folder / "summary.json").write_text(json.dumps({"steps": 10, "seconds": 12.5}))
    parts = [
        {"first_step": 0, "threads": 2, "git_commit": "a", "git_dirty": True, "torch": "2.13", "data": {}},
        {"first_step": 4, "threads": 1, "git_commit": "b", "git_dirty": False, "torch": "2.13", "data": DATA},
    ]
    RunRecord().with_part(parts[0], {}).with_part(parts[1], {}).write(run.folder)
    (run.folder / "csv" / "version_0").mkdir(parents=True)
    (run.folder / "csv" / "version_0" / "metrics.csv").write_text(
        "step,train/loss,val/loss,paths/alignment\n0,9.0,,\n1,3.0,,\n2,1.0,,\n3,3.0,,\n4,4.0,,0.5\n9,,5.0,\n"
    )


def read_results(runs: Sequence[StudyRun], renew: bool = True) -> list[RunResult]:
    """Of the runs that have one."""
    return [result for run in runs if (result := read_result(run, renew=renew)) is not None]


def test_finished_runs_are_read_and_others_left_out(write_study: WriteStudy) -> None:
    study = read_study(str(write_study(evaluation={"perturbation_document_tokens": 40})))
    runs = study_runs(study, plan_variants(study))
    write_run(runs[0], 1.5)
    write_run(runs[3], 1.25)
    first, last = read_results(runs)
    assert [(one.variant, one.seed) for one in (first, last)] == [("indep", 0), ("path_b4", 1)]
    assert first.figures == {
        "perplexity": 7.5, "bits_per_byte": 1.5, "rise_permuted_per_layer": 40.0, "seconds": 12.5,
        "roughness": 0.5,
    }  # fmt: skip
    assert (first.nats_M.tolist(), first.bytes_M.tolist()) == ([6.0, 2.0], [4.0, 5.0]), "documents that were scored"
    assert first.curve == {640: 5.0} and first.monitored == {"alignment": {320: 0.5}}
    assert (first.num_tokens, first.data_hash) == (90, "abc")
    assert first.circumstances == {
        "commit": ["a with changes", "b"], "evaluation commit": ["c"], "torch": ["2.13"], "threads": ["2", "1"],
    }  # fmt: skip
    assert first.data == DATA


def test_a_result_stands_for_its_folder(write_study: WriteStudy) -> None:
    study = read_study(str(write_study(evaluation={"perturbation_document_tokens": 40})))
    runs = study_runs(study, plan_variants(study), Path("kept"))
    write_run(runs[0], 1.5)
    (read,) = read_results(runs)
    shutil.rmtree(runs[0].folder)
    assert runs[0].is_finished and not runs[0].is_trained
    (kept,) = read_results(runs)
    for field in fields(RunResult):
        assert np.array_equal(getattr(kept, field.name), getattr(read, field.name)), field.name
    elsewhere = study_runs(study, plan_variants(study), Path("elsewhere"))
    assert read_results(elsewhere) == [] and not elsewhere[0].is_finished


def test_a_folder_that_is_there_is_read_anew_if_asked_for(write_study: WriteStudy) -> None:
    study = read_study(str(write_study(evaluation={"perturbation_document_tokens": 40})))
    runs = study_runs(study, plan_variants(study))
    write_run(runs[0], 1.5)
    read_results(runs)
    shutil.rmtree(runs[0].folder)
    write_run(runs[0], 1.75)
    (result,) = read_results(runs, renew=False)
    assert result.figures["bits_per_byte"] == 1.5
    read_results(runs)
    kept = runs[0].kept()
    assert kept is not None and kept.figures["bits_per_byte"] == 1.75


def test_a_damaged_folder_is_an_error_that_names_it(write_study: WriteStudy) -> None:
    study = read_study(str(write_study(evaluation={"perturbation_document_tokens": 40})))
    run = study_runs(study, plan_variants(study))[0]
    write_run(run, 1.5)
    report = json.loads((run.evaluation_folder / "report.json").read_text())
    del report["run"]["data_hash"]
    (run.evaluation_folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=rf"{run.folder} \(KeyError\('data_hash'\)\) must be a whole run"):
        read_result(run, renew=True)
