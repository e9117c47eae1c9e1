"""Figures of concentration hold the numbers of their sections, and the lines beside them are right."""

import math

import numpy as np
import pytest

from pathmoe_eval.reports.path_figures import coverage_figure, rarefaction_figure, zipf_figure


@pytest.fixture
def whole(make_report) -> dict:
    return make_report()["sections"]["concentration"]["whole"]


def test_zipf_shows_counts_over_ranks(whole: dict) -> None:
    rank = whole["rank_frequency"]
    figure = zipf_figure({"observed": rank})
    assert (list(figure.data[0].x), list(figure.data[0].y)) == (rank["rank"], rank["count"])
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")


def test_the_fitted_line_is_that_of_least_squares() -> None:
    ranks = [1, 3, 10, 30, 100, 300]
    counts = [500, 450, 300, 100, 40, 10]
    fit = np.polyfit(np.log(ranks[2:]), np.log(counts[2:]), 1)
    points = {"rank": ranks, "count": counts, "slope": fit[0], "slope_first_rank": 10, "slope_last_rank": 300}
    line = zipf_figure({"observed": points}).data[1]
    np.testing.assert_allclose(line.x, [10, 300])
    np.testing.assert_allclose(line.y, np.exp(np.polyval(fit, np.log([10, 300]))))
    assert line.name == f"slope {fit[0]:.2f}"


def test_without_a_slope_and_among_several_there_is_no_line(whole: dict) -> None:
    rank = whole["rank_frequency"]
    assert len(zipf_figure({"observed": rank | {"slope": None}}).data) == 1
    assert [curve.name for curve in zipf_figure({"a": rank, "b<": rank}).data] == ["a", "b&lt;"]


def test_rarefaction_shows_entropy_below_its_ceiling(whole: dict) -> None:
    curve = whole["rarefaction"]
    observed, ceiling = rarefaction_figure({"observed": curve}).data
    assert list(observed.x) == list(ceiling.x) == curve["num_tokens"]
    assert list(observed.y) == curve["entropy_bits"]
    assert list(observed.customdata) == curve["num_paths"]
    assert list(ceiling.y) == [math.log2(tokens) for tokens in curve["num_tokens"]] == curve["ceiling_bits"]
    assert all(low <= high + 1e-9 for low, high in zip(observed.y, ceiling.y, strict=True))


def test_the_ceiling_spans_all_curves() -> None:
    curves = {
        "a": {"num_tokens": [1, 4], "entropy_bits": [0.0, 1.5], "num_paths": [1, 3]},
        "b": {"num_tokens": [1, 2, 16], "entropy_bits": [0.0, 1.0, 2.0], "num_paths": [1, 2, 5]},
    }
    figure = rarefaction_figure(curves)
    assert [trace.name for trace in figure.data[:2]] == ["a", "b"]
    assert (figure.data[2].x, figure.data[2].y) == ((1, 2, 4, 16), (0, 1, 2, 4))


def test_coverage_shows_shares_beside_those_of_independent_layers(whole: dict) -> None:
    coverage = whole["coverage"]
    observed, null = coverage_figure(coverage).data
    assert list(observed.x) == [f"{paths:,}" for paths in coverage["top_paths"]]
    assert (list(observed.y), list(null.y)) == (coverage["share"], coverage["share_null"])
    assert len(coverage_figure(coverage | {"share_null": None}).data) == 1
