"""The figures of a study: which points they hold, and which colours."""

from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.studies.charts import curves_figure, pareto_figure, pareto_front, seeds_figure
from pathmoe_eval.studies.comparison import compare_variants
from tests.eval.studies.conftest import MakeResults

BITS = {"base": {0: 2.0, 1: 2.2}, "<b>": {0: 1.5, 1: 1.7}}


def test_every_run_and_every_mean_has_a_point(make_results: MakeResults) -> None:
    figure = seeds_figure(compare_variants(make_results(BITS), list(BITS), ["base"])["base"], list(BITS))
    points = [list(trace.x) for trace in figure.data]
    assert points == [[1.5, 1.7], [1.6], [2.0, 2.2], [2.1]]
    assert set(figure.data[0].y) == {"&lt;b&gt;"}
    assert list(figure.layout.meta["series"]) == [1, 1, 0, 0], "colours go by the place in the study, not by rank"


def test_bands_span_the_seeds() -> None:
    curves = {"a": [{64: 3.0, 128: 2.0, 192: 1.0}, {64: 4.0, 128: 2.5}], "b": [{64: 1.0}]}
    low, high, mean, *_ = figure_data = curves_figure(curves, ["b", "a"], "loss").data
    assert (list(low.y), list(high.y), list(mean.y)) == ([3.0, 2.0], [4.0, 2.5], [3.5, 2.25])
    assert list(mean.x) == [64, 128], "where all seeds have been"
    assert [trace.showlegend for trace in figure_data] == [False, False, None] * 2


def test_time_and_quality_of_runs_and_means(make_results: MakeResults) -> None:
    figure = pareto_figure(compare_variants(make_results(BITS), list(BITS), ["base"])["base"], list(BITS))
    runs, mean, *_ = figure.data
    assert list(runs.x) == [15.0, 17.0] and list(runs.y) == [1.5, 1.7]
    assert (list(mean.x), list(mean.y)) == ([16.0], [1.6])
    assert len(figure.data) == 4, "one variant is better in both, so that there is no line"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    beaten = {one for one in points for other in points if other != one and other[0] <= one[0] and other[1] <= one[1]}
    assert pareto_front(points) == sorted(set(points) - beaten)
