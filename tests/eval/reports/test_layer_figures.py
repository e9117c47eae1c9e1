"""Figures of layers and pairs of layers hold the numbers of their sections."""

import pytest

from pathmoe_eval.reports.layer_figures import (
    agreement_figure,
    engagement_figure,
    information_figure,
    information_map,
    jaccard_figure,
    jaccard_ratio_figure,
    matching_figure,
)

ROUTERS = (0, 0, 1, 1, 1)


@pytest.fixture
def consistency(make_report) -> dict:
    return make_report(router_of_layer=ROUTERS)["sections"]["consistency"]


def cells(figure) -> list[list[float | None]]:
    return [list(row) for row in figure.data[0].z]


def test_jaccard_of_all_pairs_without_the_diagonal(consistency: dict) -> None:
    found = cells(jaccard_figure(consistency["overlap"], ROUTERS))
    for row, values in enumerate(consistency["overlap"]["jaccard"]):
        for column, value in enumerate(values):
            assert found[row][column] == (None if row == column else value)


def test_ratio_divides_by_independent_layers_of_the_same_loads(consistency: dict) -> None:
    overlap = consistency["overlap"]
    for null in ("jaccard_null_loads", "jaccard_null_loads_ratio"):
        section = overlap | ({"jaccard_null_loads": None} if null.endswith("ratio") else {})
        found = cells(jaccard_ratio_figure(section, ROUTERS))
        for row in range(5):
            for column in range(5):
                expected = None if row == column else overlap["jaccard"][row][column] / overlap[null][row][column]
                assert found[row][column] == expected


def test_a_null_of_zero_leaves_its_cell_empty() -> None:
    overlap = {"jaccard": [[1, 0], [0, 1]], "jaccard_null_loads": [[0.5, 0], [0, 0.5]]}
    assert cells(jaccard_ratio_figure(overlap, (0, 0))) == [[None, None], [None, None]]


@pytest.mark.parametrize(("routers", "lines"), [((0, 0, 1, 1, 1), [1.5]), ((0, 1, 2, 3, 4), []), ((0,) * 5, [])])
def test_lines_part_the_routers(consistency: dict, routers: tuple[int, ...], lines: list[float]) -> None:
    shapes = jaccard_figure(consistency["overlap"], routers).layout.shapes
    assert [shape.x0 for shape in shapes if shape.x0 == shape.x1] == lines
    assert [shape.y0 for shape in shapes if shape.y0 == shape.y1] == lines


def test_information_of_all_pairs(consistency: dict) -> None:
    found = cells(information_map(consistency["information"], ROUTERS))
    assert found[0][1:] == consistency["information"]["corrected_bits"][0][1:]
    assert [found[layer][layer] for layer in range(5)] == [None] * 5


def test_neighbouring_layers_beside_their_nulls(consistency: dict) -> None:
    information, matching, agreement = (consistency[name] for name in ("information", "matching", "agreement"))
    expected = {
        information_figure: (information, "adjacent_corrected_bits", "adjacent_bits_null_highest"),
        matching_figure: (matching, "adjacent_agreement", "adjacent_agreement_null_permuted"),
        agreement_figure: (agreement, "agreement", "agreement_null"),
    }
    for figure_of, (section, observed, null) in expected.items():
        shown, chance = figure_of(section).data
        assert list(shown.x) == list(chance.x) == ["0-1", "1-2", "2-3", "3-4"]
        assert (list(shown.y), list(chance.y)) == (section[observed], section[null])


def test_engagement_over_lengths_without_points_at_zero(consistency: dict) -> None:
    scope = consistency["engagement"]["all_layers"]
    shown, chance = engagement_figure(scope).data
    assert list(shown.x) == [1, 2, 3, 4, 5]
    assert list(shown.y) == [value or None for value in scope["observed"]["token_share"]]
    assert list(chance.y) == [value or None for value in scope["null_loads"]["token_share"]]
    never = {"observed": {"token_share": [1.0, 0.03, 0.0]}, "null_loads": {"token_share": [1.0, 0.1, 0.01]}}
    figure = engagement_figure(never)
    assert figure.data[0].y == (1.0, 0.03, None)
    assert figure.layout.yaxis.range == pytest.approx((-2.1, 0.1))
