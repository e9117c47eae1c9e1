"""Figures of a study hold the numbers of their sections."""

import pytest

from pathmoe_eval.reports.locality_figures import (
    bytes_figure,
    distance_figure,
    group_figure,
    hit_rate_figure,
    hit_rate_map,
    layer_figure,
    neighbour_figure,
    union_figure,
    union_layer_figure,
)


def traces(figure) -> dict[str, list]:
    return {trace.name: list(trace.y) for trace in figure.data}


@pytest.fixture
def one(study_sections) -> dict:
    """Pairs across groups, by position."""
    return study_sections()["decomposition"][4]


def test_layers_cross_beside_their_nulls(one: dict) -> None:
    found = traces(layer_figure(one, one))
    assert found["same token"] == one["same_token"]["jaccard_of_layer"]
    assert found["different token"] == one["different_token"]["jaccard_of_layer"]
    assert found["different, across groups"] == one["different_token"]["jaccard_of_layer"]
    assert found["independent, uniform"] == [2 / 14] * 3
    assert found["same, elsewhere"] == one["same_token"]["jaccard_of_layer_null_matched"]
    assert "different, across groups" not in traces(layer_figure(one, None))


def test_a_null_has_the_colour_of_its_kind(one: dict) -> None:
    for figure in (layer_figure(one, None), distance_figure(one)):
        colours = {trace.name: trace.line.color for trace in figure.data}
        for kind in ("same", "different"):
            assert colours[f"{kind} token"] == colours[f"{kind}, elsewhere"]
        assert colours["same token"] != colours["different token"]


def test_a_kind_without_positions_has_no_line(one: dict) -> None:
    empty = one["same_token"] | {"jaccard_of_layer": None, "jaccard_of_layer_null_matched": None}
    assert set(traces(layer_figure(one | {"same_token": empty}, None))) == {
        "different token", "different, elsewhere", "independent, uniform"
    }  # fmt: skip


def test_distances_have_names_values_and_intervals(one: dict) -> None:
    figure = distance_figure(one)
    parts = one["different_token"]["distances"]
    points = next(trace for trace in figure.data if trace.name == "different token")
    assert list(points.x)[:2] == ["1", "2-4"] and points.x[-1].endswith("+")
    assert list(points.y) == [part["jaccard"] for part in parts]
    for place, part in enumerate(parts):
        if part["jaccard_interval"]:
            low, high = part["jaccard_interval"]
            assert points.error_y.array[place] == pytest.approx(max(0, high - part["jaccard"]))
            assert points.error_y.arrayminus[place] == pytest.approx(max(0, part["jaccard"] - low))


def test_unions_over_samples_and_layers(study_sections) -> None:
    growth = study_sections()["union_growth"]
    found = traces(union_figure(growth))
    assert found["observed"] == growth["union"]
    assert found["independent, uniform"] == growth["union_null_uniform"]
    assert found["independent, same loads"] == growth["union_null_loads"]
    found = traces(union_layer_figure(growth))
    assert found["observed"] == [of_layer[-1] for of_layer in growth["union_of_layer"]]


def test_caches_by_size_and_layer(study_sections) -> None:
    simulation = study_sections()["caches"][0]
    policies = {one["policy"]: one for one in simulation["policies"]}
    found = traces(hit_rate_figure(simulation))
    assert found["LRU"] == policies["lru"]["hit_rate"]
    assert found["Belady's bound"] == policies["belady"]["hit_rate"]
    assert found["LRU, random order"] == policies["lru"]["hit_rate_null_permuted"]
    assert found["any policy, uniform sets"] == [size / 8 for size in range(2, 9)]
    assert traces(bytes_figure(simulation))["LFU"] == [value / 1e6 for value in policies["lfu"]["bytes_per_token"]]
    (cells,) = hit_rate_map(simulation).data
    assert [list(row) for row in cells.z] == policies["lru"]["hit_rate_of_layer"]
    assert list(hit_rate_map(simulation).layout.xaxis.ticktext) == [str(size) for size in range(2, 9)]


def test_groups_by_rank_for_each_level(study_sections) -> None:
    found = traces(group_figure(study_sections()["equivalence"]["levels"]))
    assert found == {"-O0": [4, 2, 1], "-O2": [4, 2, 1]}


def test_neighbours_in_each_phase(study_sections) -> None:
    section = study_sections()["phases"]
    found = traces(neighbour_figure(section))
    for phase in section["phases"]:
        assert found[phase["phase"]] == phase["neighbour_jaccard"]
    assert found["cumulative, same loads"] == section["phases"][-1]["neighbour_jaccard_null_loads_ratio"]
