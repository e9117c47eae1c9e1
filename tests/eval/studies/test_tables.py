"""The tables of a study."""

from pathmoe_eval.reports.page import Number
from pathmoe_eval.studies.comparison import compare_variants
from pathmoe_eval.studies.figures import FIGURES
from pathmoe_eval.studies.matching import Sizes
from pathmoe_eval.studies.tables import (
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
    compared = compare_variants(make_results(BITS), list(BITS), "base")
    for table in (ranking_table(compared, "base"), paired_table(compared, "base")):
        assert "p, Holm" in table.head and "paired t test" in table.reading
        assert all(len(row) == len(table.head) for row in table.rows)
        assert not any("*" in str(cell) for row in table.rows for cell in row)


def test_the_ranking_is_by_bits_per_byte(make_results: MakeResults) -> None:
    table = ranking_table(compare_variants(make_results(BITS), list(BITS), "base"), "base")
    better, base = (dict(zip(table.head, row, strict=True)) for row in table.rows)
    assert (better["variant"], better["seeds"], better["less base"]) == ("better", "3", "-0.4967")
    assert isinstance(better["bits per byte"], Number) and better["bits per byte"].text == "1.6033"
    assert (base["less base"], base["p, Holm"]) == ("", "")


def test_every_other_figure_is_in_one_table(make_results: MakeResults) -> None:
    tables = figure_tables(compare_variants(make_results(BITS), list(BITS), "base"), SIZES)
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
    compared = compare_variants(make_results({"base": {0: 2.0}, "b": {0: 1.5}}), ["base", "b"], "base")
    (row,) = paired_table(compared, "base").rows
    assert row == ["b", "1", "-0.5000", *["\N{EN DASH}"] * 7]
    assert differences_table(compared, "base").rows[0][0] == "perplexity"


def test_p_values() -> None:
    assert [p_text(value) for value in (None, 0.0, 0.00099, 0.0121, 1.0)] == [
        "\N{EN DASH}", "< 0.001", "< 0.001", "0.012", "1.000",
    ]  # fmt: skip
