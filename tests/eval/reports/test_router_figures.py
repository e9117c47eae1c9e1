"""Figures of load and routers hold the numbers of their sections."""

import pytest

from pathmoe_eval.reports.router_figures import (
    bits_figure,
    busiest_figure,
    load_figure,
    margin_figure,
    router_entropy_figure,
    share_figure,
)


@pytest.fixture
def sections(make_report) -> dict:
    return make_report()["sections"]


def test_load_is_a_multiple_of_an_equal_share(sections: dict) -> None:
    balance = sections["load"]["all_picks"]
    figure = load_figure(balance, (0, 0, 1, 1, 1))
    for shown, counts in zip(figure.data[0].z, balance["counts"], strict=True):
        assert sum(shown) == pytest.approx(len(counts))
        for value, count in zip(shown, counts, strict=True):
            assert value == pytest.approx(count / (sum(counts) / len(counts)))
    assert [shape.y0 for shape in figure.layout.shapes] == [1.5]


def test_layers_beside_what_equal_experts_or_scores_give(sections: dict) -> None:
    balance, scores = sections["load"]["all_picks"], sections["router_scores"]
    for figure, values, chance in (
        (busiest_figure(balance), balance["max_over_mean"], balance["max_over_mean_null"]),
        (router_entropy_figure(scores), scores["entropy_bits"], scores["entropy_bits_null"]),
        (share_figure([0.5, 0.25], 0.1, "share"), [0.5, 0.25], 0.1),
    ):
        observed, null = figure.data
        assert list(observed.x) == list(range(len(values)))
        assert list(observed.y) == values
        assert list(null.y) == [chance] * len(values)


def test_chance_may_differ_by_layer() -> None:
    for figure in (share_figure([0.5, 0.25], [0.1, 0.2], "share"), bits_figure([0.5, 0.25], [0.1, 0.2])):
        assert [trace.y for trace in figure.data] == [(0.5, 0.25), (0.1, 0.2)]


def test_margins_are_the_quantiles_of_their_names(sections: dict) -> None:
    scores = sections["router_scores"]
    shown = {trace.name: list(trace.y) for trace in margin_figure(scores).data}
    of_layer = scores["margin_logits_quantiles"]
    assert shown == {
        "5%": [quantiles[0] for quantiles in of_layer],
        "median": [quantiles[2] for quantiles in of_layer],
        "95%": [quantiles[4] for quantiles in of_layer],
    }
    assert margin_figure(scores | {"margin_logits_quantiles": None}) is None
