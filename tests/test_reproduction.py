"""The tables of docs/reproduction/ follow from the results beside them, and its text from the tables."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from docstring_parser.attrdoc import AttributeDocstrings

from pathmoe_eval.studies.comparison import compare_variants
from pathmoe_eval.studies.plan import plan_variants
from pathmoe_eval.studies.results import read_result
from pathmoe_eval.studies.runs import kept_runs
from pathmoe_eval.studies.study import read_study
from pathmoe_eval.studies.study_report import StudyReport, markdown
from tests.training.conftest import attribute_docstrings

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reproduction"
RESULTS = FOLDER / "results"
APPENDICES = sorted(FOLDER.glob("*_tiny.md"))


@pytest.fixture(autouse=True)
def _parse_docstrings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plan has a parser, which would read the source of all classes that it shows docstrings of."""
    monkeypatch.setattr(AttributeDocstrings, "get_attr_docs", staticmethod(attribute_docstrings))


@pytest.mark.parametrize("appendix", APPENDICES, ids=lambda path: path.stem)
def test_tables_follow_from_the_results(appendix: Path) -> None:
    text = appendix.read_text()
    command, created = text.split("## How this was made\n\n")[1].strip().split("\n\n")
    command = command.replace("\\", "")
    options = dict(zip(*[iter(shlex.split(command.replace("--report ", ""))[2:])] * 2, strict=True))
    assert options["--results"] == str(RESULTS.relative_to(ROOT))
    study = read_study(str(ROOT / options["--config"]))
    variants = plan_variants(study)
    runs = kept_runs(study, variants, RESULTS)
    results = [result for run in runs if (result := read_result(run, renew=False)) is not None]
    report = StudyReport(
        study=study, variants=variants, runs=runs, results=results, states={run.key: run.state() for run in runs},
        command=command, created=created,
    )  # fmt: skip
    compared = compare_variants(results, list(study.variants), study.baselines)
    assert markdown(report, compared) == text, "make reproduction writes it anew"


@pytest.mark.parametrize("text", ["reproduction.md", "geometry.md"])
def test_numbers_of_the_text_stand_in_the_tables(text: str) -> None:
    """In each section, in what it links; a variant's row in a row of that variant. What papers say is left out."""
    sections = (ROOT / "docs" / text).read_text().split("\n## ")[1:]
    checked, missing = 0, []
    for section in sections:
        names = re.findall(r"\(((?:reproduction|geometry)/[\w-]+\.md)\)", section)
        linked = [line for name in names for line in (ROOT / "docs" / name).read_text().splitlines()]
        for paragraph in section.split("\n\n"):
            if paragraph.startswith("Paper:"):
                _, _, paragraph = paragraph.partition("Here")
            if "](http" in paragraph or paragraph.startswith("```") or not names:
                continue
            for line in paragraph.splitlines():
                missing += [f"{number} of: {line}" for number in _unfounded(line, linked)]
                checked += len(_numbers(line))
    assert not missing and checked > 100


def test_the_table_of_verdicts_has_those_of_the_sections() -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text()
    rows = re.findall(r"^\| \[(.+)\]\(#(.+)\) \| (.+) \|$", text, flags=re.M)
    sections = {title: body for title, _, body in (one.partition("\n") for one in text.split("\n## ")[1:])}
    assert [title for title, _, _ in rows] == [title for title, body in sections.items() if "\nPaper: " in body]
    for title, anchor, verdict in rows:
        assert anchor == re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        # The first in bold is that on the paper's own pair.
        first = re.search(r"\*\*((?:Can't be told|Holds|Does not hold|holds))", sections[title])
        assert first is not None and first[1].lower() == verdict, title


def test_numbers_of_the_readme_stand_in_the_tables() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    for row_begins, study, number in ((r"\| `\w+`: ", "headline_tiny", 4), (r"\| `\w+` \| \d+\.", "routers_tiny", 9)):
        linked = (FOLDER / f"{study}.md").read_text().splitlines()
        rows = [line for line in lines if re.match(row_begins, line)]
        assert len(rows) == number and all(_numbers(row) and not _unfounded(row, linked) for row in rows)


def _numbers(line: str) -> list[str]:
    """Numbers with decimals, or of four digits and more."""
    text = re.sub(r"arXiv [\d.]+", "", line)
    return re.findall(r"(?<![\w.])[+-]?(?:\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+)%?", text)


def _unfounded(line: str, linked: Sequence[str]) -> list[str]:
    """The numbers of a line that no line of the tables has, of its variant if it is a variant's row."""
    variant = re.match(r"\| `(\w+)`", line)
    rows = [row for row in linked if variant and row.startswith(f"| {variant[1]} |".replace("_", "\\_"))]

    def is_there(number: str) -> bool:
        exact = re.compile(rf"(?<![\d.,]){re.escape(number)}(?!\d|,\d|%)")
        return any(map(exact.search, rows or linked))

    return [number for number in _numbers(line) if not is_there(number)]
