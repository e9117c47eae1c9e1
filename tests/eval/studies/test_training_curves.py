"""The course of training in a study's report: which curves it has, and what its tables say of them."""

from dataclasses import replace

from pathmoe_eval.reports.page import Number, Panel, Table
from pathmoe_eval.studies.training_curves import curves_table, training_chapter
from tests.eval.studies.conftest import MakeResults

BITS = {"indep": {0: 2.0, 1: 3.0}, "path_b4": {0: 1.5}}


def test_what_was_logged_has_a_curve_and_a_table(make_results: MakeResults) -> None:
    chapter = training_chapter(make_results(BITS), list(BITS))
    panels = [part for part in chapter.parts if isinstance(part, Panel)]
    assert [panel.title for panel in panels] == ["Learning curves", "Path entropy", "Load entropy"]
    tables = [part for part in chapter.parts if isinstance(part, Table)]
    assert [table.title.split(",")[0] for table in tables] == ["Validation loss", "Path entropy", "Load entropy"]
    assert tables[1].rows == [
        ["indep", Number("2.500", "2.000 to 3.000"), Number("5.000", "4.000 to 6.000")],
        ["path_b4", "1.500", "3.000"],
    ]


def test_variants_without_a_curve_are_left_out(make_results: MakeResults) -> None:
    first, *others = make_results(BITS)
    chapter = training_chapter([replace(first, monitored={}, curve={}), replace(others[1], monitored={})], list(BITS))
    panel, _ = chapter.parts
    assert isinstance(panel, Panel) and [one.name for one in panel.figure.data if one.name] == ["path_b4"]
    assert training_chapter([], list(BITS)).parts == []


def test_a_table_has_few_points_the_first_and_the_last_among_them() -> None:
    long = {64 * step: float(step) for step in range(1, 40)}
    table = curves_table("", {"a": [long], "b": [{tokens: 0.0 for tokens in long if tokens > 64}]}, "")
    assert len(table.head) == 7 and (table.head[1], table.head[-1]) == ("128 tokens", "2,496 tokens")
    assert table.rows[0][1] == "2.000", "where all variants have been"


def test_variants_with_no_point_in_common_have_no_columns() -> None:
    assert curves_table("", {"a": [{64: 1.0}], "b": [{128: 1.0}]}, "").head == ["variant"]
