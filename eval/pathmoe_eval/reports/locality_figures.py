"""Figures of routing locality: by layer, by distance from the fork, by samples, by size of a cache, by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.reports.figure_style import BLOCK_RGB, CHANCE, GREY, heat_map, line_figure, new_figure
from pathmoe_eval.reports.locality_summary import level_name

Section = Mapping[str, Any]

_KINDS = {"same_token": "same token", "different_token": "different token"}
_ACROSS = "different, across groups"
_COLOUR = {
    name: f"rgb({rgb})" for name, rgb in zip((*_KINDS.values(), _ACROSS), BLOCK_RGB, strict=False)
}  # what the same token elsewhere gives has the colour of its kind
_DASHED = {"color": GREY, "dash": "dash", "width": 1.5}
_POLICY_NAMES = {
    "belady": "Belady's bound",
    "lfu": "LFU",
    "lru": "LRU",
    "static": "static, from the first half",
    "static_prefill": "static, from the prompt",
}


def layer_figure(one: Section, other: Section | None) -> go.Figure:
    """Overlap of each layer at same and at different tokens (`TokenIdentity` as a dict), the papers' crossing plot.

    Args:
        one: the pairs that lead.
        other: pairs across groups, whose different tokens are drawn too; or None.
    """
    observed = {
        name: one[key]["jaccard_of_layer"] for key, name in _KINDS.items() if one[key]["jaccard_of_layer"] is not None
    }
    if other is not None and other["different_token"]["jaccard_of_layer"] is not None:
        observed[_ACROSS] = other["different_token"]["jaccard_of_layer"]
    num_layers = len(next(iter(observed.values())))
    chance: dict[str, Sequence[float | None]] = {
        "independent, uniform": [one["jaccard_null_uniform_ratio"]] * num_layers
    }
    figure = line_figure(list(range(num_layers)), observed, chance, "layer", "Jaccard of expert sets")
    for key, name in _KINDS.items():
        null = one[key]["jaccard_of_layer_null_matched"]
        if null is not None:
            _add_elsewhere(figure, list(range(num_layers)), null, name)
    figure.for_each_trace(
        lambda trace: trace.update(line_color=_COLOUR[trace.name]), lambda trace: trace.name in _COLOUR
    )
    return figure


def distance_figure(one: Section) -> go.Figure:
    """Overlap by distance from the fork, with intervals over forks (`TokenIdentity` as a dict)."""
    figure = new_figure("tokens since the fork", "Jaccard of expert sets")
    labels = [_bin_name(part["first_distance"], part["last_distance"]) for part in one["same_token"]["distances"]]
    for key, name in _KINDS.items():
        parts = one[key]["distances"]
        ends = [part["jaccard_interval"] or (part["jaccard"], part["jaccard"]) for part in parts]
        values = [part["jaccard"] for part in parts]
        figure.add_scatter(
            x=labels, y=values, name=name, mode="lines+markers", line={"color": _COLOUR[name]},
            error_y={
                "array": [_gap(high, value) for (_, high), value in zip(ends, values, strict=True)],
                "arrayminus": [_gap(value, low) for (low, _), value in zip(ends, values, strict=True)],
                "thickness": 1.2,
            },
        )  # fmt: skip
    for key, name in _KINDS.items():
        null = [part["jaccard_null_matched"] for part in one[key]["distances"]]
        _add_elsewhere(figure, labels, null, name)
    null = [one["jaccard_null_uniform_ratio"]] * len(labels)
    figure.add_scatter(x=labels, y=null, name="independent, uniform", mode="lines", line=CHANCE)
    figure.update_xaxes(type="category")
    figure.update_yaxes(rangemode="tozero")
    return figure


def union_figure(growth: Section) -> go.Figure:
    """Distinct experts of n samples (`UnionGrowth` as a dict)."""
    figure = line_figure(
        growth["sample_counts"],
        {"observed": growth["union"]},
        {"independent, uniform": growth["union_null_uniform"]},
        "samples side by side",
        "experts touched in a layer",
    )
    _add_same_loads(figure, growth["sample_counts"], growth["union_null_loads"])
    figure.update_xaxes(type="log", tickvals=growth["sample_counts"], tick0=None, dtick=None)
    return figure


def union_layer_figure(growth: Section) -> go.Figure:
    """The same of each layer, at the largest number of samples."""
    layers = list(range(len(growth["union_of_layer"])))
    figure = line_figure(
        layers,
        {"observed": [of_layer[-1] for of_layer in growth["union_of_layer"]]},
        {"independent, uniform": [growth["union_null_uniform"][-1]] * len(layers)},
        "layer",
        f"experts that {growth['sample_counts'][-1]} samples touch",
    )
    _add_same_loads(figure, layers, [of_layer[-1] for of_layer in growth["union_of_layer_null_loads"]])
    return figure


def hit_rate_figure(simulation: Section) -> go.Figure:
    """Hit rate of each policy over experts resident in a layer (`CacheSimulation` as a dict)."""
    sizes = simulation["num_resident"]
    figure = line_figure(
        sizes,
        {_POLICY_NAMES[one["policy"]]: one["hit_rate"] for one in simulation["policies"]},
        {"any policy, uniform sets": simulation["hit_rate_null_uniform"]},
        "experts resident in a layer",
        "hit rate",
    )
    lru = next(one for one in simulation["policies"] if one["policy"] == "lru")
    figure.add_scatter(x=sizes, y=lru["hit_rate_null_permuted"], name="LRU, random order", mode="lines", line=_DASHED)
    figure.update_xaxes(tick0=sizes[0])
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    return figure


def bytes_figure(simulation: Section) -> go.Figure:
    """Megabytes loaded for a token, over experts resident in a layer (`CacheSimulation` as a dict)."""
    figure = line_figure(
        simulation["num_resident"],
        {
            _POLICY_NAMES[one["policy"]]: [value / 1e6 for value in one["bytes_per_token"]]
            for one in simulation["policies"]
        },
        {},
        "experts resident in a layer",
        "megabytes loaded a token",
    )
    figure.update_xaxes(tick0=simulation["num_resident"][0])
    return figure


def hit_rate_map(simulation: Section) -> go.Figure:
    """Hit rate of LRU by layer and experts resident (`CacheSimulation` as a dict)."""
    lru = next(one for one in simulation["policies"] if one["policy"] == "lru")
    sizes = simulation["num_resident"]
    figure = heat_map(
        lru["hit_rate_of_layer"], "experts resident in a layer", "layer", hover="layer %{y}: hit rate %{z:.1%}"
    )
    step = -(-len(sizes) // 8)
    figure.update_xaxes(
        tickmode="array", tickvals=list(range(0, len(sizes), step)), ticktext=[str(size) for size in sizes[::step]]
    )
    return figure


def group_figure(levels: Sequence[Section]) -> go.Figure:
    """Programs in each group of equivalent ones, the largest first, both axes logarithmic, for each level."""
    figure = new_figure("rank of the group", "programs")
    for level in levels:
        sizes = [group["num_programs"] for group in level["groups"]]
        if sizes:
            figure.add_scatter(x=list(range(1, len(sizes) + 1)), y=sizes, name=level_name(level), mode="lines+markers")
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1)
    return figure


def neighbour_figure(section: Section) -> go.Figure:
    """How alike a token and the one before it are routed, by layer, in each phase (`Phases` as a dict)."""
    shown = [phase for phase in section["phases"] if phase["neighbour_jaccard"] is not None]
    layers = list(range(len(section["phases"][0]["distinct_experts"])))
    return line_figure(
        layers,
        {phase["phase"]: phase["neighbour_jaccard"] for phase in shown},
        {f"{phase['phase']}, same loads": phase["neighbour_jaccard_null_loads_ratio"] for phase in shown[-1:]},
        "layer",
        "Jaccard with the token before",
    )


def _add_elsewhere(figure: go.Figure, x: Sequence[int | str], y: Sequence[float | None], name: str) -> None:
    line = {**_DASHED, "color": _COLOUR[name]}
    figure.add_scatter(x=list(x), y=list(y), name=f"{name.removesuffix(' token')}, elsewhere", mode="lines", line=line)


def _add_same_loads(figure: go.Figure, x: Sequence[int], y: Sequence[float]) -> None:
    figure.add_scatter(x=list(x), y=list(y), name="independent, same loads", mode="lines", line=_DASHED)


def _bin_name(first: int, last: int | None) -> str:
    if last is None:
        return f"{first}+"
    return str(first) if first == last else f"{first}-{last}"


def _gap(high: float | None, low: float | None) -> float | None:
    return None if high is None or low is None else max(0.0, high - low)
