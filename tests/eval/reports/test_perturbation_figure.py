"""The perturbation chart holds perplexities as multiples of the free model's."""

import pytest

from pathmoe_eval.reports.perturbation_figure import perturbation_figure


@pytest.fixture
def section(make_report) -> dict:
    return make_report()["sections"]["perturbation"]


def test_points_are_multiples_with_their_intervals(section: dict) -> None:
    (points,) = perturbation_figure({"": section}).data
    for place, one in enumerate(section["perturbed"]):
        assert points.x[place] == pytest.approx(one["perplexity"] / section["free_perplexity"])
        low, high = one["rise_percent_interval"]
        assert points.x[place] + points.error_x.array[place] == pytest.approx(max(1 + high / 100, points.x[place]))
        assert points.x[place] - points.error_x.arrayminus[place] == pytest.approx(min(1 + low / 100, points.x[place]))
        assert points.customdata[place] == one["perplexity"]


def test_the_permutations_stand_side_by_side_on_a_logarithmic_axis(section: dict) -> None:
    layout = perturbation_figure({"": section}).layout
    assert layout.yaxis.categoryarray[::-1] == (
        "permutation per layer",
        "permutation per router block",
        "logit noise 0.5",
    )
    assert layout.xaxis.type == "log"
    assert list(zip(layout.xaxis.tickvals, layout.xaxis.ticktext, strict=True))[:7] == [
        (0.5, "0.5"), (1, "1"), (2, "2"), (5, "5"), (10, "10"), (20, "20"), (50, "50"),
    ]  # fmt: skip
    assert [shape.x0 for shape in layout.shapes] == [1]


def test_what_is_beyond_all_bounds_has_no_point_and_no_interval_no_bar(section: dict) -> None:
    first, second, third = section["perturbed"]
    perturbed = [first | {"rise_percent": None, "perplexity": None}, second | {"rise_percent_interval": None}, third]
    (points,) = perturbation_figure({"": section | {"perturbed": perturbed}}).data
    assert list(points.y) == ["permutation per router block", "logit noise 0.5"]
    assert (points.error_x.array[0], points.error_x.arrayminus[0]) == (0, 0)


def test_a_mean_outside_of_its_interval_has_no_bar_backwards(section: dict) -> None:
    one = section["perturbed"][0] | {"rise_percent": 50.0, "rise_percent_interval": [60.0, 70.0]}
    (points,) = perturbation_figure({"": section | {"perturbed": [one]}}).data
    assert (points.error_x.array[0], points.error_x.arrayminus[0]) == (pytest.approx(0.2), 0)


def test_models_have_a_colour_each(section: dict) -> None:
    figure = perturbation_figure({"a": section, "<b>": section})
    assert [points.name for points in figure.data] == ["a", "&lt;b&gt;"]
    assert figure.layout.showlegend
    assert perturbation_figure({"a": section}).layout.showlegend
    assert not perturbation_figure({"": section}).layout.showlegend


def test_over_many_decades_the_ticks_are_powers_of_ten(section: dict) -> None:
    one = section["perturbed"][0] | {"rise_percent": 1e8, "rise_percent_interval": None}
    axis = perturbation_figure({"": section | {"perturbed": [one]}}).layout.xaxis
    assert axis.tickvals[:4] == (0.5, 1, 10, 100)
    assert axis.ticktext[:4] == ("0.5", "1", "10", "100")
