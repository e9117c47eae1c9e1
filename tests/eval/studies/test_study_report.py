"""The report of a study: what is missing is said, every run has its row, and nothing depends on the unfinished."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pathmoe_eval.studies.comparison import compare_variants
from pathmoe_eval.studies.plan import plan_variants
from pathmoe_eval.studies.runs import FINISHED, study_runs
from pathmoe_eval.studies.study import read_study
from pathmoe_eval.studies.study_report import StudyReport, summary_lines, write_study_report
from tests.eval.studies.conftest import MakeResults, WriteStudy

BITS = {"indep": {0: 2.0, 1: 2.2}, "path_b4": {0: 1.5}}

WriteReport = Callable[..., Path]


@pytest.fixture
def write_report(write_study: WriteStudy, make_results: MakeResults) -> WriteReport:
    """Writes the report of results by variant and seed."""

    def write(bits: dict[str, dict[int, float]], **changes: Any) -> Path:
        study = read_study(str(write_study(**changes)))
        variants = plan_variants(study)
        runs = study_runs(study, variants)
        finished = {(name, seed) for name, by_seed in bits.items() for seed in by_seed}
        report = StudyReport(
            study=study, variants=variants, runs=runs, results=make_results(bits),
            states={
                run.key: FINISHED if (run.variant.name, run.seed) in finished else "at step 4 of 10, last error: <why>"
                for run in runs
            },
            command="pathmoe-eval study --config mine.yaml", created="2026-01-01T00:00:00",
        )  # fmt: skip
        write_study_report(Path("out"), report, compare_variants(report.results, list(study.variants), study.baseline))
        return Path("out")

    return write


def test_an_unfinished_study_says_what_is_missing_and_reports_the_rest(write_report: WriteReport) -> None:
    out = write_report(BITS)
    text, page = (out / "report.md").read_text(), (out / "index.html").read_text()
    missing = "Not finished, 1 of 4 runs: path_b4, seed 1: at step 4 of 10, last error: <why>."
    assert missing in text
    assert missing.replace("<why>", "&lt;why&gt;") in page
    assert "3 of 4 runs finished" in text and "fewer than three seeds" in text
    for part in ("## Ranking", "## Differences in bits per byte", "| path\\_b4 | 1 |", "paired t test"):
        assert part in text
    assert "<title>Study mine</title>" in page and page.count('class="plot"') == 3


def test_a_study_of_which_nothing_is_there_is_reported(write_report: WriteReport) -> None:
    out = write_report({})
    text = (out / "report.md").read_text()
    assert "Not finished, 4 of 4 runs" in text and "## Ranking" in text and "## Differences" not in text
    assert 'class="plot"' not in (out / "index.html").read_text()


def test_runs_are_rows_of_a_csv(write_report: WriteReport) -> None:
    with (write_report(BITS) / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["variant"], row["seed"], row["bits_per_byte"]) for row in rows] == [
        ("indep", "0", "2.0"), ("path_b4", "0", "1.5"), ("indep", "1", "2.2"), ("path_b4", "1", ""),
    ]  # fmt: skip
    assert rows[3]["state"].startswith("at step 4")


def test_every_number_is_kept(write_report: WriteReport) -> None:
    numbers = json.loads((write_report(BITS) / "study.json").read_text())
    assert numbers["study"]["seeds"] == [0, 1] and len(numbers["variants"]) == 2
    assert numbers["variants"][0]["arguments"][-1] == "--trainer.max_steps=10"
    best, _ = numbers["comparison"]
    assert best["name"] == "path_b4" and best["figures"]["bits_per_byte"]["difference"]["mean"] == -0.5
    assert numbers["runs"][0]["curve"] == [[64, 4.0 - 0.064], [128, 4.0 - 0.128], [192, 4.0 - 0.192]]


def test_runs_of_different_circumstances_are_marked(write_report: WriteReport) -> None:
    text = (write_report(BITS) / "report.md").read_text()
    assert "commit: abc" in text and "runs differ in it" not in text


def test_the_terminal_is_told_in_short(make_results: MakeResults) -> None:
    bits = {"indep": {0: 2.0, 1: 2.2, 2: 2.1}, "path_b4": {0: 1.5}}
    assert summary_lines(compare_variants(make_results(bits), list(bits), "indep")) == [
        "  path_b4  1.5000 bits per byte, 1 seed",
        "  indep    2.1000 bits per byte (1.8516 to 2.3484), 3 seeds",
    ]
    assert summary_lines([]) == []
