"""Lines, heat maps and bounds of routers, as every figure has them."""

import pytest

from pathmoe_eval.reports.figure_style import CHANCE, heat_map, line_figure, new_figure, router_bounds


def test_figures_leave_colours_and_background_to_the_page() -> None:
    figure = new_figure("x", "y", height=200)
    layout = figure.to_plotly_json()["layout"]
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text, figure.layout.height) == ("x", "y", 200)
    assert not layout.keys() & {"paper_bgcolor", "plot_bgcolor", "font", "colorway"}


def test_lines_hold_their_values_and_chance_is_grey() -> None:
    figure = line_figure([0, 1, 2], {"a": [0.5, None, 0.25]}, {"c": [0.1, 0.1, 0.2]}, "layer", "share")
    observed, chance = figure.data
    assert (observed.name, observed.x, observed.y) == ("a", (0, 1, 2), (0.5, None, 0.25))
    assert observed.line.color is None
    assert (chance.name, chance.y, chance.line.color) == ("c", (0.1, 0.1, 0.2), CHANCE["color"])


@pytest.mark.parametrize(("num_labels", "ticks"), [(1, 1), (10, 1), (11, 2), (23, 3)])
def test_a_long_axis_of_names_shows_every_so_many(num_labels: int, ticks: int) -> None:
    labels = [f"{layer}-{layer + 1}" for layer in range(num_labels)]
    axis = line_figure(labels, {"a": [0.0] * num_labels}, {}, "layers", "share").layout.xaxis
    assert (axis.type, axis.dtick) == ("category", ticks)


def test_a_heat_map_has_its_values_the_first_row_on_top() -> None:
    figure = heat_map([[1.0, None], [0.5, 4.0], [0.0, 2.0]], "expert", "layer", hover="%{z}")
    assert [list(row) for row in figure.data[0].z] == [[1.0, None], [0.5, 4.0], [0.0, 2.0]]
    assert figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.meta == {"scale": "sequential"}


@pytest.mark.parametrize(("highest", "top"), [(4.0, 4.0), (1.1, 1.5), (0.5, 1.5)])
def test_the_neutral_colour_lies_at_the_middle_value(highest: float, top: float) -> None:
    figure = heat_map([[0.25, highest, None]], "x", "y", hover="%{z}", middle=1.0)
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0, top)
    assert axis.cmin + figure.layout.meta["middle"] * (axis.cmax - axis.cmin) == 1.0


@pytest.mark.parametrize(
    ("routers", "bounds"),
    [((0, 0, 1, 1, 1), [2]), ((0, 1, 1, 0), [1, 3]), ((0, 0, 0), []), ((0, 1, 2), []), ((0,), []), ((), [])],
)
def test_bounds_part_blocks_that_share_a_router(routers: tuple[int, ...], bounds: list[int]) -> None:
    assert router_bounds(routers) == bounds
