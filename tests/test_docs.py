"""What the pages in `docs/` name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TOP_LEVEL = "configs|docs|eval|kernels|pathmoe|tests"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(rf"(?<![\w/.])(?:{TOP_LEVEL})/[\w/.]+\.(?:py|yaml|md|sh|sbatch)\b", text))
    linked = {str((page.parent / link).resolve().relative_to(ROOT)) for link in re.findall(r"\]\(([\w/.]+)\)", text)}
    missing = [name for name in sorted(named | linked) if not (ROOT / name).exists()]
    assert not missing, f"{page.name} names {missing}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_rows_of_a_table_have_as_many_cells_as_its_head(page: Path) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", page.read_text(), flags=re.M)
    for table in tables:
        cells = [len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row))) for row in table.splitlines()]
        assert len(set(cells)) == 1, table


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        links = {
            (page.parent / link).resolve()
            for page in new
            for link in re.findall(r"\]\(([\w/.-]+\.md)", page.read_text())
        }
        new = {page for page in links if page.exists()} - reached
    assert [page.name for page in PAGES if page not in reached] == []
