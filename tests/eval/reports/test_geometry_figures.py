"""Figures of geometry hold the numbers of their section."""

from typing import Any

import pytest

from pathmoe_eval.reports.geometry_figures import (
    agreement_figure,
    alignment_figure,
    block_figure,
    block_step_figure,
    explained_figure,
    logit_distance_figure,
    overlap_figure,
    pooled_figure,
    probe_figure,
    same_token_figure,
    sequence_correlation_figure,
    sequence_figure,
    shared_direction_figure,
    step_figure,
    subspace_figure,
    tightness_figure,
    truncation_figure,
)


def lines(figure: Any) -> dict[str, list[Any]]:
    return {trace.name: list(trace.y) for trace in figure.data}


@pytest.fixture
def layers(geometry_section: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = geometry_section["layers"]
    return found


def test_lines_over_layers_are_the_figures_of_layers(layers: list[dict[str, Any]]) -> None:
    explained = lines(explained_figure(layers))
    pairs = [layer["token_pairs"] for layer in layers]
    assert explained["row space of the router"] == [one["explained"]["share"]["row"] for one in pairs]
    assert explained["logits"] == [one["explained"]["share"]["logits"] for one in pairs]
    assert lines(tightness_figure(layers))["bound of the row space"] == [
        one["bound"]["tightness_row"][2] for one in pairs
    ]
    same = lines(same_token_figure(layers))
    assert same["same token"] == [one["same_token"]["overlap"] for one in pairs]
    assert same["any two tokens"] == [one["same_token"]["overlap_any"] for one in pairs]
    usage = lines(sequence_figure(layers, "usage_cosine", "cosine"))
    for where in ("within", "across"):
        expected = [layer["sequences"][where]["usage_cosine"]["value"] for layer in layers]
        assert usage[f"{where} domains"] == expected
        (bars,) = [trace.error_y for trace in sequence_figure(layers, "usage_cosine", "").data if where in trace.name]
        ends = [layer["sequences"][where]["usage_cosine"]["interval"] for layer in layers]
        for value, interval, up, down in zip(expected, ends, bars.array, bars.arrayminus, strict=True):
            assert [value - down, value + up] == pytest.approx(interval or [value, value])
    pooled = lines(pooled_figure(layers))
    for where in ("within", "across"):
        expected = [one["sequences"][where]["pooled_null"]["value"] for one in layers]
        assert pooled[f"its null space, {where} domains"] == expected
    for usage in ("usage_cosine", "top_p_jaccard", "mask_overlap"):
        expected = [one["sequences"]["correlation"]["pooled_full"][usage]["value"] for one in layers]
        assert lines(sequence_correlation_figure(layers, usage))["whole space"] == expected
    shared = lines(shared_direction_figure(layers))
    assert shared["of logits"] == [one["shared_direction"]["logit_energy"] for one in layers]
    assert shared["mean of logits"] == [one["shared_direction"]["mean_logit_energy"] for one in layers]


def test_figures_of_one_layer_are_curves(layers: list[dict[str, Any]]) -> None:
    layer = layers[1]
    curve = layer["token_pairs"]["explained"]["curve"]["null"]
    assert lines(overlap_figure(layer))["its null space"] == [overlap for _, overlap, _ in curve]
    distances = lines(logit_distance_figure(layer))
    assert distances["its null space"] == [logits for _, _, logits in curve]
    furthest = max(point[0] for point in layer["token_pairs"]["explained"]["curve"]["row"])
    assert distances["most in the row space"][1] == layer["token_pairs"]["bound"]["largest_gain"] * furthest
    assert lines(alignment_figure(layer))["router"] == layer["alignment"]["ratio"]
    truncated = lines(truncation_figure(layer))
    assert truncated["rank 2 by chance"] == [layer["truncation"]["agreement_null"][1]] * 2
    assert truncated["rank 2"] == [of_kept[1] for of_kept in layer["truncation"]["agreement"]]


def test_the_last_layer_has_no_next_expert(layers: list[dict[str, Any]]) -> None:
    assert list(probe_figure(layers, "expert").data[0].x) == [0, 1, 2]
    assert list(probe_figure(layers, "next expert").data[0].x) == [0, 1]
    probes = lines(probe_figure(layers, "token"))
    assert probes["control (row space)"] == [
        layer["probes"]["accuracy"]["token"]["control"]["accuracy"] for layer in layers
    ]
    assert probes["most frequent"] == [layer["probes"]["most_frequent"]["token"] for layer in layers]


def test_pairs_of_layers_have_their_names(geometry_section: dict[str, Any]) -> None:
    pairs = geometry_section["drift"]
    figure = agreement_figure(pairs)
    assert list(figure.data[0].x) == ["0-1", "1-2"]
    assert lines(figure)["predicted"] == [one["predicted_agreement"] for one in pairs]
    assert lines(step_figure(pairs))["not seen"] == [one["step_null"] for one in pairs]
    assert lines(subspace_figure(pairs))["routers by chance"] == [one["router_overlap_null"] for one in pairs]


def test_a_block_is_followed_from_its_first_layer() -> None:
    step = {"agreement_null": 0.1, "predicted_agreement": 0.5, "step_null": 0.8}
    pairs = [
        step | {"first_layer": 4, "second_layer": 5, "agreement": 0.9, "step_row": 0.3},
        step | {"first_layer": 4, "second_layer": 6, "agreement": 0.7, "step_row": 0.4},
    ]
    steps = block_step_figure(pairs)
    assert lines(steps) == {"from layer 4, seen": [0.3, 0.4], "from layer 4, not seen": [0.8, 0.8]}
    assert list(steps.data[0].x) == [1, 2]
    figure = block_figure(pairs)
    assert lines(figure)["from layer 4, measured"] == [0.9, 0.7] and list(figure.data[0].x) == [1, 2]
