"""Reports side by side: names, page, table, and the folder that they are written to."""

import html
import json
import os
import re
from pathlib import Path

import pytest

from pathmoe_eval.reports.compare import (
    PAGE_FILE,
    TABLE_FILE,
    Comparison,
    compare,
    compare_command,
    read_reports,
    write_comparison,
)
from pathmoe_eval.reports.comparison_rows import comparison_rows
from pathmoe_eval.reports.number_format import UNDEFINED
from pathmoe_eval.reports.report import write_report

COMMAND = "pathmoe-eval compare a b"


@pytest.fixture
def folders(make_report, tmp_path: Path) -> list[Path]:
    write_report(tmp_path / "a", make_report(model="one"))
    write_report(tmp_path / "b", make_report(model="two", seed=1))
    return [tmp_path / "a", tmp_path / "b"]


def figures(page: str) -> list[dict]:
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])


def test_reports_are_called_by_their_models(folders: list[Path]) -> None:
    assert list(read_reports(folders)) == ["one", "two"]
    assert read_reports([folders[0] / "report.json", folders[1]]) == read_reports(folders)


def test_reports_of_one_model_are_called_by_their_folders_or_files(make_report, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, make_report())
    assert list(read_reports([tmp_path / "a", tmp_path / "b"])) == [str(tmp_path / "a"), str(tmp_path / "b")]
    copies = [tmp_path / "x.json", tmp_path / "y.json"]
    for copy in copies:
        copy.write_bytes((tmp_path / "a" / "report.json").read_bytes())
    assert list(read_reports(copies)) == [str(copy) for copy in copies]


def test_one_report_or_one_twice_is_refused(folders: list[Path]) -> None:
    a, b = folders
    for paths in ([a], []):
        with pytest.raises(ValueError, match=r"^reports \(.*\) must be two or more; give another one to compare with$"):
            read_reports(paths)
    for paths in ([b, a, a], [a, a / "report.json"], [a, b / ".." / "a"]):
        with pytest.raises(
            ValueError, match=rf"^reports \({a}\) must each be given once, but this one is given twice; "
        ):
            read_reports(paths)
    with pytest.raises(ValueError, match=r"missing/report.json|missing \("):
        read_reports([folders[0], folders[0] / "missing"])


def test_the_table_has_a_row_for_each_figure_and_a_column_for_each_report(folders: list[Path]) -> None:
    reports = read_reports(folders)
    rows = comparison_rows(reports)
    lines = [line for line in compare(reports, COMMAND).table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == ["", "one", "two"]
    assert [line[0] for line in cells[2:]] == list(rows)
    for line, of_reports in zip(cells[2:], rows.values(), strict=True):
        for cell, row in zip(line[1:], of_reports, strict=True):
            assert (
                cell == UNDEFINED
                if row is None
                else cell == f"{row.value} ({row.context}; {row.num_tokens:,} {row.unit})"
            )


def test_texts_are_plain_in_markdown(folders: list[Path]) -> None:
    one, two = read_reports(folders).values()
    table = compare({"path_b4 | *x* <b>": one, "two": two}, COMMAND).table
    assert "| path\\_b4 \\| \\*x\\* &lt;b&gt; | two |" in table


def test_the_page_has_the_rows_the_notes_and_the_commands(make_report) -> None:
    reports = {"one": make_report(), "two": make_report(router_of_layer=(0, 1, 2, 3, 4), model="m2", num_tokens=500)}
    page = html.unescape(compare(reports, COMMAND).page)
    for name, rows in comparison_rows(reports).items():
        mark = " \N{DAGGER}" if None not in rows and rows[0].num_tokens != rows[1].num_tokens else ""
        assert f"<bdi>{name}{mark}</bdi>" in page
        for row in rows:
            if row is not None:
                assert f"<bdi>{row.value}</bdi><small>{row.context}; {row.num_tokens:,} tokens</small>" in page
    for text in ("subsamples of 256 tokens", "of different texts", COMMAND, "pathmoe-eval paths --model m2"):
        assert text in page


def test_curves_lie_over_one_another(folders: list[Path]) -> None:
    reports = read_reports(folders)
    rarefaction, zipf, information, perturbation = figures(compare(reports, COMMAND).page)
    for figure, key in ((rarefaction, "rarefaction"), (zipf, "rank_frequency")):
        for trace, (name, report) in zip(figure["data"], reports.items(), strict=False):
            curve = report["sections"]["concentration"]["whole"][key]
            assert trace["name"] == name
            assert trace["y"] == curve["entropy_bits" if key == "rarefaction" else "count"]
    for trace, report in zip(information["data"], reports.values(), strict=True):
        assert trace["y"] == report["sections"]["consistency"]["information"]["adjacent_corrected_bits"]
    assert [trace["name"] for trace in perturbation["data"]] == ["one", "two"]


def test_a_report_has_one_colour_in_all_figures(folders: list[Path]) -> None:
    reports = read_reports(folders)
    del reports["one"]["sections"]["perturbation"]
    *others, perturbation = figures(compare(reports, COMMAND).page)
    assert [figure["layout"]["meta"]["series"] for figure in others] == [[0, 1]] * 3
    assert perturbation["layout"]["meta"]["series"] == [1]


def test_reports_of_perplexity_alone_compare_too(folders: list[Path]) -> None:
    reports = read_reports(folders)
    for report in reports.values():
        report["sections"] = {"perplexity": report["sections"]["perplexity"]}
    comparison = compare(reports, COMMAND)
    assert 'class="plot"' not in comparison.page
    assert "| Perplexity |" in comparison.table


def test_the_command_writes_both_and_prints_the_table(folders: list[Path], capsys, tmp_path: Path) -> None:
    for _ in range(2):  # an earlier comparison is written over
        compare_command(folders, tmp_path / "out", COMMAND)
    assert sorted(os.listdir(tmp_path / "out")) == [TABLE_FILE, PAGE_FILE]
    comparison = compare(read_reports(folders), COMMAND)
    assert (tmp_path / "out" / TABLE_FILE).read_text() == comparison.table
    assert (tmp_path / "out" / PAGE_FILE).read_text() == comparison.page
    assert comparison.table in capsys.readouterr().out


def test_what_does_not_compare_like_for_like_is_said_on_stderr_on_the_page_and_in_the_table(
    make_report, capsys, tmp_path: Path
) -> None:
    for name, report in (("a", make_report(model="one")), ("b", make_report(model="two", num_tokens=500))):
        report["run"]["stride"] = len(report["run"]["router_of_layer"]) + (name == "b")
        write_report(tmp_path / name, report)
    compare_command([tmp_path / "a", tmp_path / "b"], tmp_path / "out", COMMAND)
    error = capsys.readouterr().err.splitlines()
    unlike = "The reports differ in stride (one: 5, two: 6): their figures do not compare like for like."
    assert error[0] == f"warning: {unlike}"
    table = (tmp_path / "out" / TABLE_FILE).read_text()
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    marked = [row for row in rows if row.split(" | ")[0].endswith(" \N{DAGGER}")]
    assert error[1:] == [
        f"warning: Rows marked \N{DAGGER} ({len(marked)} of {len(rows)}) were counted on different numbers of tokens: "
        "what differs there may be the sample and not the model."
    ]
    # Entropies are those of equal numbers of tokens.
    assert len(marked) == len(rows) - 3 and not any("entropy H" in row for row in marked)
    page = html.unescape((tmp_path / "out" / PAGE_FILE).read_text())
    for warning in error:
        assert warning.removeprefix("warning: ") in page
    assert unlike in table


def test_one_evaluation_of_two_models_needs_no_warning(folders: list[Path], capsys, tmp_path: Path) -> None:
    compare_command(folders, tmp_path / "out", COMMAND)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["report.json", "notes.txt", PAGE_FILE])
def test_a_folder_of_something_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"^--out \(.*\) must hold nothing but a comparison, but holds {name}; .*$"):
        write_comparison(tmp_path, Comparison(page="", table=""))
    assert (tmp_path / name).read_text() == "mine"
    with pytest.raises(ValueError, match=r"^--out \(.*\) must be a folder, but is a file; choose another$"):
        write_comparison(tmp_path / name, Comparison(page="", table=""))
