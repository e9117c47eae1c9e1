"""Parts of a row of a summary."""

from pathmoe_eval.reports.number_format import percent
from pathmoe_eval.reports.summary_row import SummaryRow, between, mean


def test_interval_and_chance_stand_together_where_they_are() -> None:
    assert SummaryRow("a", "1", "2 by chance", 3).context == "2 by chance"
    assert SummaryRow("a", "1", "2 by chance", 3, "0 to 2").context == "0 to 2; 2 by chance"
    assert SummaryRow("a", "1", "", 3, "0 to 2").context == "0 to 2"
    assert SummaryRow("a", "1", "", 3).unit == "tokens"


def test_an_interval_in_the_form_of_its_figure() -> None:
    assert between((0.25, 0.5), percent) == "25.0% to 50.0%"
    assert between(None, percent) == ""


def test_a_mean() -> None:
    assert mean([1, 2, 6]) == 3
