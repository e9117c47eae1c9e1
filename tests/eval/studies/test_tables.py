"""The tables of a study."""

import pytest

from pathmoe_eval.reports.page import Number
from pathmoe_eval.studies.comparison import compare_variants
from pathmoe_eval.studies.figures import FIGURES
from pathmoe_eval.studies.matching import Sizes
from pathmoe_eval.studies.tables import (
    PAIRED,
    differences_table,
    figure_tables,
    p_text,
    paired_table,
    ranking_table,
)
from tests.eval.studies.conftest import MakeResults

BITS = {"base": {0: 2.0, 1: 2.2, 2: 2.1}, "better": {0: 1.5, 1: 1.72, 2: 1.59}}
SIZES = {name: Sizes(parameters=1000, active_parameters=200, router_parameters=10, flops=6000) for name in BITS}


def test_every_test_is_named_where_its_p_value_stands(make_results: MakeResults) -> None:
    compared = compare_variants(make_results(BITS), list(BITS), ["base"])["base"]
    ranking, pairs = ranking_table(compared, "base"), paired_table(compared, "base")
    for table, text in ((ranking, ranking.reading), (pairs, PAIRED)):
        assert "p, Holm" in table.head and "paired t test" in text
        assert all(len(row) == len(table.head) for row in table.rows)
        assert not any("*" in str(cell) for row in table.rows for cell in row)


def test_the_ranking_is_by_bits_per_byte(make_results: MakeResults) -> None:
    table = ranking_table(compare_variants(make_results(BITS), list(BITS), ["base"])["base"], "base")
    better, base = (dict(zip(table.head, row, strict=True)) for row in table.rows)
    assert (better["variant"], better["seeds"], better["less base"]) == ("better", "3", "-0.4967")
    assert isinstance(better["bits per byte"], Number) and better["bits per byte"].text == "1.6033"
    assert (base["less base"], base["p, Holm"]) == ("", "")


def test_every_other_figure_is_in_one_table(make_results: MakeResults) -> None:
    tables = figure_tables(compare_variants(make_results(BITS), list(BITS), ["base"])["base"], SIZES)
    assert [table.title for table in tables] == [
        "Paths", "Layers", "Load and training", "Robustness", "Geometry: directions and pairs",
        "Geometry: probes of control and content", "Geometry: from layer to layer", "Cost",
    ]  # fmt: skip
    columns = [title for table in tables for title in table.head if title != "variant"]
    names = [figure.name for figure in FIGURES if not figure.place.startswith("perplexity")]
    assert sorted(columns[:-4]) == sorted(names)
    assert columns[-4:] == ["parameters", "active", "routers", "FLOPs a token"]
    assert tables[-1].rows[0][-4:] == ["1,000", "200", "10", "6,000"]


def test_one_seed_has_no_intervals(make_results: MakeResults) -> None:
    compared = compare_variants(make_results({"base": {0: 2.0}, "b": {0: 1.5}}), ["base", "b"], ["base"])["base"]
    (row,) = paired_table(compared, "base").rows
    assert row == ["b", "1", "-0.5000", *["\N{EN DASH}"] * 7]
    assert differences_table(compared, "base").rows[0][0] == "perplexity"


def test_factors_are_compared_by_their_ratio(make_results: MakeResults) -> None:
    results = make_results(BITS)
    for result in results:
        # Twice, four and eight times the perplexity; five times that for the other variant.
        factor = 2.0 ** (1 + result.seed) * (5 if result.variant == "better" else 1)
        result.figures["rise_reassigned"] = 100 * (factor - 1)
    compared = compare_variants(results, list(BITS), ["base"])["base"]
    by_name = {one.name: one.figures["rise_reassigned"] for one in compared}
    assert by_name["base"].mean == pytest.approx(300) and by_name["better"].mean == pytest.approx(1900)
    ends = by_name["base"].interval
    assert ends is not None and -100 < ends[0] < 300 and (1 + ends[0] / 100) * (1 + ends[1] / 100) == pytest.approx(16)
    rows = {row[0]: row[1] for row in differences_table(compared, "base").rows}
    assert rows["rise, reassigned"] == Number("5 times", "5 to 5")


def test_figures_in_which_nothing_differs_have_no_row(make_results: MakeResults) -> None:
    results = make_results(BITS)
    for result in results:
        if result.variant == "base":
            del result.figures["retained"]
        result.figures["dead_experts"] = 0.0
    compared = compare_variants(results, list(BITS), ["base"])["base"]
    assert "logits retained" not in [row[0] for row in differences_table(compared, "base").rows]
    load = next(table for table in figure_tables(compared, SIZES) if table.title == "Load and training")
    assert {row[load.head.index("dead experts")] for row in load.rows} == {"0.000"}, "no interval where nothing varies"


def test_p_values() -> None:
    assert [p_text(value) for value in (None, 0.0, 0.00099, 0.0121, 1.0)] == [
        "\N{EN DASH}", "< 0.001", "< 0.001", "0.012", "1.000",
    ]  # fmt: skip
