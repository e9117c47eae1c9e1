"""The data of docs/geometry.md on interventions are of the three languages, whole documents, and long enough."""

import ast
import json
import sys
from pathlib import Path

import pytest
import three_domains

from pathmoe.data.c_functions import c_program


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """Texts by domain."""
    found: dict[str, list[str]] = {}
    for domain, text in three_domains.documents():
        found.setdefault(domain, []).append(text)
    return found


def test_each_domain_has_sixteen_documents_that_are_long_enough(texts: dict[str, list[str]]) -> None:
    assert {domain: len(of_one) for domain, of_one in texts.items()} == {"python": 16, "c": 16, "english": 16}
    assert all(len(text) >= 800 and len(set(of_one)) == 16 for of_one in texts.values() for text in of_one)


def test_they_are_in_the_language_of_their_domain(texts: dict[str, list[str]]) -> None:
    for text in texts["python"]:
        ast.parse(text)
    programs = {c_program(0, index) for index in range(1000)}
    assert set(texts["c"]) <= programs
    assert all(" the " in text and "int main" not in text for text in texts["english"])


def test_the_command_writes_them_as_json_lines(
    texts: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "three.jsonl"
    monkeypatch.setattr(sys, "argv", ["three_domains.py", "--out", str(file)])
    three_domains.main()
    assert capsys.readouterr().out == f"{file}: 48 documents\n"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["text"] for row in rows if row["domain"] == "english"] == texts["english"]


def test_a_folder_that_is_not_there_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["three_domains.py", "--out", f"{tmp_path}/none/three.jsonl"])
    with pytest.raises(SystemExit, match="2"):
        three_domains.main()
    assert capsys.readouterr().err.count("\n") == 1
