"""The report of a study: what is missing is said, every run has its row, and nothing depends on the unfinished."""

import csv
import json

from pathmoe_eval.studies.comparison import compare_variants
from pathmoe_eval.studies.study_report import summary_lines
from tests.eval.studies.conftest import MakeResults, WriteReport

BITS = {"indep": {0: 2.0, 1: 2.2}, "path_b4": {0: 1.5}}


def test_an_unfinished_study_says_what_is_missing_and_reports_the_rest(write_report: WriteReport) -> None:
    out = write_report(BITS)
    text, page = (out / "report.md").read_text(), (out / "index.html").read_text()
    missing = "Not finished, 1 of 4 runs: path_b4, seed 1: at step 4 of 10, last error: &lt;why&gt;."
    assert missing in page and missing.replace("path_b4", "path\\_b4") in text
    assert "3 of 4 runs finished" in text and "fewer than three seeds" in text
    for part in ("## Ranking", "## Differences in bits per byte", "| path\\_b4 | 1 |", "paired t test"):
        assert part in text
    assert "<title>Study mine</title>" in page and page.count('class="plot"') == 5


def test_a_study_of_which_nothing_is_there_is_reported(write_report: WriteReport) -> None:
    out = write_report({})
    text = (out / "report.md").read_text()
    assert "Not finished, 4 of 4 runs" in text and "## Ranking" in text and "## Differences" not in text
    assert 'class="plot"' not in (out / "index.html").read_text()


def test_every_baseline_has_its_tables(write_report: WriteReport) -> None:
    text = (write_report(BITS, also_against=["path_b4"]) / "report.md").read_text()
    assert "compared with indep and path_b4" in text
    for name in ("indep", "path\\_b4"):
        assert text.count(f"**Bits per byte less those of {name}**") == text.count(f"**Less those of {name}**") == 1


def test_steps_of_different_sizes_are_told(write_report: WriteReport) -> None:
    assert "· 640 training tokens each ·" in (text := (write_report({}) / "report.md").read_text())
    assert "does not compare" not in text
    variants = {"indep": {"configs": ["indep"]}, "path_b4": {"overrides": {"data.sequence_length": 96}}}
    text = (write_report({}, variants=variants, allow_other_data=True) / "report.md").read_text()
    assert "· 640 to 768 training tokens each ·" in text
    assert "Steps are of different numbers of tokens, so that the roughness of variants does not compare." in text


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
    best, _ = numbers["comparison"]["indep"]
    assert best["name"] == "path_b4" and best["figures"]["bits_per_byte"]["difference"]["mean"] == -0.5
    assert numbers["runs"][0]["monitored"]["entropy_bits"] == [[64, 2.0], [128, 4.0]]
    assert numbers["runs"][0]["curve"] == [[64, 4.0 - 0.064], [128, 4.0 - 0.128], [192, 4.0 - 0.192]]


def test_runs_of_different_circumstances_are_marked(write_report: WriteReport) -> None:
    text = (write_report(BITS) / "report.md").read_text()
    assert "commit: abc" in text and "runs differ in it" not in text
    assert "Trained on mine.jsonl, 5,000 targets to train on, 4 documents held out; SHA-256 of both: 1" in text
    text = (write_report(BITS, circumstances={"commit": ["abc", "def"], "threads": ["1"]}) / "report.md").read_text()
    assert "commit: abc, def: runs differ in it" in text and "threads: 1." in text


def test_what_does_not_compare_is_said(write_report: WriteReport) -> None:
    text = (write_report(BITS) / "report.md").read_text()
    assert "Evaluated on 500 tokens of 4 documents" in text and "different seeds so far" in text
    assert "different documents" not in text and "CSVLogger" not in text
    whole = {name: dict.fromkeys((0, 1), 1.5) for name in BITS}
    text = (write_report(whole, curve={}) / "report.md").read_text()
    assert "different seeds so far" not in text and "Runs without Lightning's CSVLogger" in text


def test_a_picture_goes_with_its_runs(write_report: WriteReport) -> None:
    assert (write_report(BITS) / "picture.svg").read_text().startswith("<svg")
    assert not (write_report({}) / "picture.svg").exists()


def test_the_terminal_is_told_in_short(make_results: MakeResults) -> None:
    bits = {"indep": {0: 2.0, 1: 2.2, 2: 2.1}, "path_b4": {0: 1.5}, "omni": {0: 1.9, 1: 2.2, 2: 2.0}}
    assert summary_lines(compare_variants(make_results(bits), list(bits), ["indep"])["indep"]) == [
        "  path_b4  1.5000 bits per byte, 1 seed  -0.5000",
        "  omni     2.0333 bits per byte, 3 seeds  -0.0667 (-0.2101 to +0.0768), p 0.367",
        "  indep    2.1000 bits per byte, 3 seeds",
    ]
    assert summary_lines([]) == []
