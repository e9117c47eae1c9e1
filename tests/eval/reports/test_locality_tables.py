"""The tables of RESULTS.md hold the numbers of their reports, and every table is whole."""

import json
import sys
from pathlib import Path

import locality_tables
import pytest

from pathmoe_eval.reports.number_format import UNDEFINED
from pathmoe_eval.reports.report import FORMAT


@pytest.fixture
def tables(study_sections) -> dict[str, list[list[str]]]:
    """Cells of each table by its title, of two reports."""
    text = locality_tables.results({"one": study_sections(), "two": study_sections()})
    found: dict[str, list[list[str]]] = {}
    for line in text.split("\n"):
        if line.startswith("### "):
            title = line.removeprefix("### ")
        elif line:
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_every_row_has_a_cell_for_each_column_and_both_models_have_as_many(tables) -> None:
    assert len(tables) == 8
    for title, (head, rule, *rows) in tables.items():
        assert set(rule) == {"---"} and {len(row) for row in rows} == {len(head)}, title
        one, two = ([row[1:] for row in rows if row[0] == name] for name in ("one", "two"))
        assert one == two and one, title


def test_programs_and_overlap(tables, study_sections) -> None:
    assert tables["Trees"][2][1:7] == ["tree", "8", "7", "6", "0", "100"]
    row = tables["Groups of equal programs"][2]
    assert row[1:6] == ["-O0", "8", "7", "3", "57.1% (50.0%)"] and row[6:] == ["100.0% (87.5%)", UNDEFINED]
    assert tables["What differs within groups"][2][1] == "6"
    sections = study_sections()
    rows = tables["Overlap by token identity"][2:]
    for number, one in enumerate(sections["decomposition"]):
        found = one["same_token"]
        assert rows[2 * number][3] == (UNDEFINED if found["jaccard"] is None else f"{found['jaccard']:.3f}")
        assert rows[2 * number][7] == str(found["num_positions"])


def test_layers_distances_unions_and_caches(tables, study_sections) -> None:
    sections = study_sections()
    first = sections["decomposition"][0]["same_token"]
    assert tables["By layer"][2][3:] == [f"{value:.3f}" for value in first["jaccard_of_layer"]]
    assert tables["By distance from the fork"][0][3:] == [
        f"from {part['first_distance']}" for part in first["distances"]
    ]
    assert tables["Union growth"][2][2:] == [f"{value:.2f}" for value in sections["union_growth"]["union"]]
    policy = sections["caches"][0]["policies"][0]
    row = tables["Hit rates of caches"][2]
    assert tables["Hit rates of caches"][0][3:] == ["2 experts", "3 experts", "4 experts"]
    assert row[2:4] == [policy["policy"], f"{policy['hit_rate'][0]:.1%}, {policy['bytes_per_token'][0] / 1e6:.2f} MB"]


def test_the_command_prints_them_of_folders(
    study_sections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"command": "pathmoe-eval locality", "model": "m", "data": "f.c", "num_tokens": 3}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report = {"format": FORMAT, "run": run, "sections": study_sections()}
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["locality_tables.py", f"{tmp_path}/a", f"{tmp_path}/b"])
    locality_tables.main()
    assert capsys.readouterr().out.count("| a | within groups, by diff | same |") == 3
    for wrong, message in (([f"{tmp_path}/none"], "none"), ([f"{tmp_path}/a"] * 2, "reports (a, a) must be folders")):
        monkeypatch.setattr(sys, "argv", ["locality_tables.py", *wrong])
        with pytest.raises(SystemExit, match="2"):
            locality_tables.main()
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
