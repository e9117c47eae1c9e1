"""The flow figure against transitions counted in plain loops, and the geometry of its boxes."""

# Shapes: N tokens, L layers, A = L - 1 pairs of adjacent layers, E experts.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.reports.figure_style import BLOCK_RGB
from pathmoe_eval.reports.flow_figure import MAX_RIBBONS_OF_A_PAIR, flow_picture


def transitions(path_ids_NL, num_experts: int):
    counts = np.zeros((len(path_ids_NL[0]) - 1, num_experts, num_experts), dtype=int)
    for path in path_ids_NL:
        for layer in range(len(path) - 1):
            counts[layer][path[layer]][path[layer + 1]] += 1
    return counts.tolist()


@st.composite
def flows(draw):
    num_layers, num_experts = draw(st.integers(2, 5)), draw(st.integers(1, 5))
    path = st.lists(st.integers(0, num_experts - 1), min_size=num_layers, max_size=num_layers)
    return draw(st.lists(path, min_size=1, max_size=30)), num_experts


@given(flows())
def test_ribbons_are_the_transitions(case) -> None:
    paths, num_experts = case
    num_layers = len(paths[0])
    picture = flow_picture(transitions(paths, num_experts), range(num_layers))
    (sankey,) = picture.figure.data
    boxes = sankey.node.customdata
    found = {
        (boxes[source], boxes[target]): value
        for source, target, value in zip(sankey.link.source, sankey.link.target, sankey.link.value, strict=True)
    }
    expected: dict[tuple[str, str], int] = {}
    for path in paths:
        for layer in range(num_layers - 1):
            ends = f"layer {layer}, expert {path[layer]}", f"layer {layer + 1}, expert {path[layer + 1]}"
            expected[ends] = expected.get(ends, 0) + 1
    assert found == expected
    assert len(found) == len(sankey.link.value)
    assert picture.shown_share == 1.0
    # Plotly leaves out a box without ribbons and then confuses the places of the others.
    assert {*sankey.link.source, *sankey.link.target} == set(range(len(boxes)))


@given(flows())
def test_boxes_of_a_layer_stand_above_one_another_in_the_order_of_experts(case) -> None:
    paths, num_experts = case
    num_layers = len(paths[0])
    (sankey,) = flow_picture(transitions(paths, num_experts), range(num_layers)).figure.data
    for layer in range(num_layers):
        places = [place for place, name in enumerate(sankey.node.customdata) if name.startswith(f"layer {layer},")]
        experts = [int(sankey.node.customdata[place].split()[-1]) for place in places]
        assert experts == sorted({path[layer] for path in paths})
        assert {sankey.node.x[place] for place in places} == {min(max(layer / (num_layers - 1), 1e-3), 1 - 1e-3)}
        halves = [sum(path[layer] == expert for path in paths) / len(paths) / 2 for expert in experts]
        centres = [sankey.node.y[place] for place in places]
        assert all(0 < y < 1 for y in centres)
        # The gaps take some of the height, so boxes are a little lower than their share of it.
        for above in range(len(places) - 1):
            assert centres[above + 1] - centres[above] >= 0.85 * (halves[above] + halves[above + 1])


def test_only_frequent_transitions_of_a_large_model_are_shown() -> None:
    rng = np.random.default_rng(0)
    counts_AEE = rng.multinomial(100_000, rng.dirichlet(np.full(32 * 32, 0.1)), size=3).reshape(3, 32, 32)
    picture = flow_picture(counts_AEE.tolist(), (0, 0, 1, 1))
    shown = np.array(picture.figure.data[0].link.value)
    assert len(shown) <= 3 * MAX_RIBBONS_OF_A_PAIR
    assert shown.min() >= picture.least_share * 100_000
    expected = counts_AEE[counts_AEE >= picture.least_share * 100_000]
    assert sorted(shown) == sorted(expected)
    assert picture.shown_share == pytest.approx(expected.sum() / 300_000)


def test_colours_are_those_of_the_routers_of_the_left_layers() -> None:
    counts = [[[1, 2], [3, 4]]] * 3
    (sankey,) = flow_picture(counts, (0, 0, 5, 5)).figure.data
    colours = [colour.rpartition(",")[0] for colour in sankey.link.color]
    assert colours == [f"rgba({BLOCK_RGB[0]}"] * 8 + [f"rgba({BLOCK_RGB[1]}"] * 4


def test_layers_are_numbered_below_their_columns() -> None:
    figure = flow_picture([[[1, 2], [3, 4]]] * 3, (0, 0, 1, 1)).figure
    assert [(note.text, note.x) for note in figure.layout.annotations[:4]] == [
        ("0", 0), ("1", pytest.approx(1 / 3)), ("2", pytest.approx(2 / 3)), ("3", 1),
    ]  # fmt: skip
