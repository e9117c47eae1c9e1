"""Chapters on perplexity hold the numbers of their sections."""

import pytest

from pathmoe_eval.reports.number_format import UNDEFINED, interval, ratio
from pathmoe_eval.reports.score_chapters import perplexity_chapter, perturbation_chapter


def test_perplexity_of_all_and_of_each_domain(make_report) -> None:
    section = make_report()["sections"]["perplexity"]
    (table,) = perplexity_chapter(section).parts
    assert [row[0] for row in table.rows] == ["all", "news", "code"]
    for row, one in zip(table.rows, [section["total"], *section["by_domain"]], strict=True):
        assert row[1:] == [
            ratio(one["perplexity"]), interval(one["perplexity_interval"]), ratio(one["bits_per_byte"]),
            interval(one["bits_per_byte_interval"]), str(one["num_documents"]), str(one["num_tokens"]),
        ]  # fmt: skip
    assert "95% interval" in table.head
    section["by_domain"] = section["by_domain"][:1]
    assert [row[0] for row in perplexity_chapter(section).parts[0].rows] == ["all"]


def test_perturbations_stand_with_the_reason_intervals_and_seeds(make_report) -> None:
    section = make_report()["sections"]["perturbation"]
    chapter = perturbation_chapter(section)
    assert chapter.notes == [section["permutations"]["reason"]]
    panel, table = chapter.parts
    assert len(panel.figure.data[0].x) == 3
    for row, one in zip(table.rows, section["perturbed"], strict=True):
        low, high = one["rise_percent_interval"]
        assert row[1:] == [
            ratio(one["perplexity"]), f"{one['rise_percent']:+,.1f}%", f"{low:+,.1f}% to {high:+,.1f}%",
            f"{one['rise_percent_seed_std']:,.1f}", "3", UNDEFINED,
        ]  # fmt: skip


def test_what_is_not_defined_is_a_dash(make_report) -> None:
    section = make_report()["sections"]["perturbation"] | {"permutations": None}
    undefined = ("perplexity", "rise_percent", "rise_percent_interval", "rise_percent_seed_std")
    section["perturbed"] = [section["perturbed"][0] | dict.fromkeys(undefined) | {"listed_share": 0.5}]
    chapter = perturbation_chapter(section)
    assert chapter.parts[1].rows[0][1:] == [UNDEFINED, UNDEFINED, UNDEFINED, UNDEFINED, "3", "50.0%"]


@pytest.mark.parametrize(
    ("paths_from", "note"),
    [(None, "from the scored documents themselves, of which"), ("a/trace", "from the trace a/trace. A list that all")],
)
def test_lists_say_where_they_are_from_and_whether_all_tokens_are_on_them(make_report, paths_from, note) -> None:
    section = make_report()["sections"]["perturbation"] | {"permutations": None, "paths_from": paths_from}
    assert perturbation_chapter(section).notes == []
    section["perturbed"] = [section["perturbed"][0] | {"listed_share": share} for share in (0.5, 0.99999, 1.0)]
    chapter = perturbation_chapter(section)
    assert len(chapter.notes) == 1 and note in chapter.notes[0]
    assert [row[-1] for row in chapter.parts[1].rows] == ["50.0%", "100.0%", "all"]
