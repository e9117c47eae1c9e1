"""Chapters of a study hold the numbers of their sections, and say which pairs they are of."""

import pytest

from pathmoe_eval.reports.locality_chapters import (
    cache_chapter,
    decomposition_chapter,
    equivalence_chapter,
    phases_chapter,
    tree_chapter,
    union_chapter,
)
from pathmoe_eval.reports.number_format import UNDEFINED, interval, percent, ratio
from pathmoe_eval.reports.page import Panel, Table, Words


@pytest.fixture
def sections(study_sections) -> dict:
    return study_sections()


def tables(chapter) -> list[Table]:
    return [part for part in chapter.parts if isinstance(part, Table)]


def test_the_tree_is_drawn_beside_its_numbers(sections: dict) -> None:
    chapter = tree_chapter(sections["tree"])
    panel, table = chapter.parts
    assert "all completions" in panel.reading and panel.is_wide
    facts = dict(table.rows)
    assert facts["completions"] == "8" and facts["different ones"] == "7" and facts["tokens forwarded"] == "100"
    drawn = sections["tree"]["drawn"] | {"num_completions": 5}
    assert "5 of the completions" in tree_chapter(sections["tree"] | {"drawn": drawn}).parts[0].reading


@pytest.mark.parametrize(("method", "word"), [("tree", "forks"), ("samples", "best-of-N"), ("beams", "Beam search")])
def test_the_way_of_generating_is_said(sections: dict, method: str, word: str) -> None:
    assert word in tree_chapter(sections["tree"] | {"method": method}).notes[0]


def test_groups_have_both_denominators_and_reasons_of_failure(sections: dict) -> None:
    chapter = equivalence_chapter(sections["equivalence"])
    levels, differences = tables(chapter)
    assert [row[0] for row in levels.rows] == ["-O0", "-O2"]
    assert levels.rows[0][1:3] == ["7", "3"]
    assert levels.rows[0][3] == "57.1% (50.0%)" and levels.rows[0][5] == UNDEFINED
    assert levels.rows[0][6] == Words("error 1")
    assert dict(differences.rows)["nothing but comments or blank lines"] == "100.0%"
    assert "6 pairs that differ, among 7" in differences.reading
    assert "gcc" in chapter.notes[0] and "10 s, and 1,024 MiB a process." in chapter.notes[0]


def test_levels_of_python_have_no_dash_of_gcc(sections: dict) -> None:
    equivalence = sections["equivalence"]
    equivalence["levels"] = [level | {"language": "python"} for level in equivalence["levels"]]
    assert [row[0] for row in tables(equivalence_chapter(equivalence))[0].rows] == ["0", "2"]


def test_without_groups_there_is_no_figure_of_them(sections: dict) -> None:
    level = sections["equivalence"]["levels"][0] | {"groups": [], "largest": [], "failures": {}, "num_compiled": 0}
    chapter = equivalence_chapter(sections["equivalence"] | {"levels": [level]})
    assert not any(isinstance(part, Panel) for part in chapter.parts)
    assert tables(chapter)[0].rows[0][3:] == [UNDEFINED, UNDEFINED, UNDEFINED, Words(UNDEFINED)]


def test_overlap_of_every_kind_is_in_the_table(sections: dict) -> None:
    (table,) = tables(decomposition_chapter(sections["decomposition"]))
    assert len(table.rows) == 16
    for number, one in enumerate(sections["decomposition"]):
        for place, key in enumerate(("same_token", "different_token")):
            found, row = one[key], table.rows[2 * number + place]
            assert row[1] == Words(ratio(found["jaccard"]), interval(found["jaccard_interval"]))
            assert row[3] == ratio(found["jaccard_null_matched"])
            assert row[4] == str(found["num_positions"])
    assert table.rows[0][0] == Words("within groups, by diff", "same")


def test_the_pairs_of_a_figure_are_said(sections: dict) -> None:
    chapter = decomposition_chapter(sections["decomposition"])
    titles = [part.title for part in chapter.parts if isinstance(part, Panel)]
    assert titles == ["By layer, within groups, by diff", "By distance from the fork, within groups, by diff"]
    assert "0.1429" in chapter.notes[0]


def test_without_pairs_the_next_kind_leads_and_without_any_there_is_but_the_table(sections: dict) -> None:
    none = {"num_positions": 0}
    empty = [
        one | {key: one[key] | none for key in ("same_token", "different_token")} for one in sections["decomposition"]
    ]
    assert [type(part) for part in decomposition_chapter(empty).parts] == [Table]
    found = decomposition_chapter([*empty[:3], *sections["decomposition"][3:]]).parts[0]
    assert found.title == "By layer, across groups, by diff"
    assert "different, across groups" not in [trace.name for trace in found.figure.data]


def test_unions_by_step(sections: dict) -> None:
    growth = sections["union_growth"]
    (table,) = tables(union_chapter(growth))
    assert table.rows[0] == ["1 to 1", "1", ratio(growth["bins"][0]["union"][-1])]
    assert table.rows[-1][0].endswith("+")


def test_caches_of_each_order_with_a_quarter_of_the_experts(sections: dict) -> None:
    chapter = cache_chapter(sections["caches"])
    (table,) = tables(chapter)
    assert "2 experts" in table.title
    assert [row[0].aside for row in table.rows] == [
        "warm at its beginning", "empty at its beginning", "warm at its beginning"
    ]  # fmt: skip
    for row, simulation in zip(table.rows, sections["caches"], strict=True):
        assert row[1:] == [percent(one["hit_rate"][0]) for one in simulation["policies"]]


def test_phases_and_where_no_token_has_one_before_it(sections: dict) -> None:
    section = sections["phases"]
    _, table = phases_chapter(section).parts
    assert [row[0] for row in table.rows] == ["prefill", "generation", "cumulative"]
    assert percent(sum(section["load_overlap"]) / 3) in table.reading
    alone = [phase | {"neighbour_jaccard": None, "mean_neighbour_jaccard": None} for phase in section["phases"]]
    (table,) = phases_chapter(section | {"phases": alone, "load_overlap": None}).parts
    assert table.rows[0][5] == UNDEFINED and table.reading == "Means over layers."
