"""Rows of a study hold the figures of their sections, each with its chance and what it was counted over."""

from typing import Any

from pathmoe_eval.reports.locality_summary import LOCALITY_ROWS, leading, pairs_name, quarter_resident
from pathmoe_eval.reports.number_format import percent, ratio
from pathmoe_eval.reports.summary import summary_rows


def named(sections: dict[str, Any]) -> dict[str, Any]:
    rows = summary_rows(sections)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def test_every_section_but_the_phases_has_rows(study_sections) -> None:
    sections = study_sections()
    assert set(sections) - set(LOCALITY_ROWS) == {"phases"}
    for name in LOCALITY_ROWS:
        assert summary_rows({name: sections[name]}), name


def test_programs_stand_with_both_denominators(study_sections) -> None:
    rows = named(study_sections())
    assert rows["Completions"][1:4] == ("8", "7 different", 62)
    assert rows["Programs that compile"][1:] == ("87.5%", "7 of 8 completions", 8, "", "completions")
    assert rows["Groups of equal assembly, -O0"][1:3] == ("3", "of 7 programs")
    assert rows["Programs in the largest 3 groups"][1:3] == ("100.0%", "of the compiled; 87.5% of the completed")


def test_overlap_stands_with_three_kinds_of_chance(study_sections) -> None:
    sections = study_sections()
    one = sections["decomposition"][3]
    row = named(sections)["Jaccard, different token, across groups, by diff"]
    found = one["different_token"]
    assert row.value == percent(found["jaccard"]) and row.unit == "positions"
    assert row.beside.startswith(f"{found['jaccard'] / (2 / 14):.1f} times random ({percent(2 / 14)})")
    assert row.num_tokens == found["num_positions"]


def test_only_the_first_alignment_of_each_kind_of_pairs_has_rows(study_sections) -> None:
    sections = study_sections()
    assert [pairs_name(one) for one in leading(sections["decomposition"])] == [
        "within groups, by diff", "across groups, by diff", "siblings within groups, by diff"
    ]  # fmt: skip
    names = " ".join(named(sections))
    assert "by position" not in names and "by lines" not in names


def test_what_has_no_positions_or_no_groups_has_no_row(study_sections) -> None:
    sections = study_sections()
    one = sections["decomposition"][3]
    empty = one["same_token"] | {"jaccard": None}
    rows = summary_rows({"decomposition": [one | {"same_token": empty}]})
    assert [row.name for row in rows] == ["Jaccard, different token, across groups, by diff"]
    level = sections["equivalence"]["levels"][0] | {"groups": [], "largest": [], "num_compiled": 0}
    rows = summary_rows({"equivalence": sections["equivalence"] | {"levels": [level]}})
    assert [row.value for row in rows] == ["0.0%", "0"]


def test_unions_and_caches_stand_with_their_laws(study_sections) -> None:
    sections = study_sections()
    rows = named(sections)
    growth, simulation = sections["union_growth"], sections["caches"][0]
    row = rows["Experts that 4 samples touch a step"]
    assert row.value == ratio(growth["union"][-1])
    assert row.beside.startswith(f"{ratio(8 * (1 - (1 - 2 / 8) ** 4))} of independent samples")
    lru = next(one for one in simulation["policies"] if one["policy"] == "lru")
    place = quarter_resident(simulation)
    assert simulation["num_resident"][place] == 2
    assert rows["Hit rate of LRU, 2 experts a layer"].value == percent(lru["hit_rate"][place])
