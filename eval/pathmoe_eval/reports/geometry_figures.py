"""Figures of the geometry of routers and hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.reports.figure_style import CHANCE, line_figure, new_figure

Section = Mapping[str, Any]

SPACES = {"full": "whole space", "row": "row space of the router", "null": "its null space"}
PARTS = {"control": "control (row space)", "content": "content (null space)"}
_SOLID, _DASHED = {"dash": "solid"}, {"dash": "dash"}


def explained_figure(layers: Sequence[Section]) -> go.Figure:
    """Share of the variance of expert overlap that each distance explains, by layer."""
    shares = [layer["token_pairs"]["explained"]["share"] for layer in layers]
    observed = {name: [share[space] for share in shares] for space, name in SPACES.items()}
    observed["logits"] = [share["logits"] for share in shares]
    return line_figure(_names(layers), observed, {}, "MoE layer", "share of variance explained")


def overlap_figure(layer: Section) -> go.Figure:
    """Overlap of experts over the distance of states, in each space, of one layer."""
    return _over_distance(layer, 1, "share of experts in common")


def logit_distance_figure(layer: Section) -> go.Figure:
    """Distance of logits over that of states, in each space, of one layer, with the most that Proposition 1 allows."""
    figure = _over_distance(layer, 2, "RMS distance of router logits")
    bound = layer["token_pairs"]["bound"]
    if bound is not None:
        furthest = max(point[0] for point in layer["token_pairs"]["explained"]["curve"]["row"])
        gains = {"most in the row space": bound["largest_gain"], "least": bound["smallest_gain"]}
        for name, gain in gains.items():
            figure.add_scatter(x=[0, furthest], y=[0, gain * furthest], name=name, mode="lines", line=CHANCE)
    return figure


def _over_distance(layer: Section, column: int, title: str) -> go.Figure:
    figure = new_figure("RMS distance of hidden states", title)
    for space, name in SPACES.items():
        points = layer["token_pairs"]["explained"]["curve"][space]
        figure.add_scatter(
            x=[point[0] for point in points], y=[point[column] for point in points], name=name, mode="lines"
        )
    figure.update_yaxes(rangemode="tozero")
    return figure


def tightness_figure(layers: Sequence[Section]) -> go.Figure:
    """Distance of logits over its bound, medians over pairs, by layer."""
    bounds = [layer["token_pairs"]["bound"] for layer in layers]
    observed = {
        f"bound of the {name}": [_median(bound[f"tightness_{space}"]) for bound in bounds]
        for space, name in (("row", "row space"), ("full", "whole space"))
    }
    return line_figure(_names(layers), observed, {"the bound": [1.0] * len(layers)}, "MoE layer", "share of the bound")


def _median(quantiles: Sequence[float]) -> float | None:
    """The middle one; none where no pair is apart."""
    return quantiles[len(quantiles) // 2] if quantiles else None


def same_token_figure(layers: Sequence[Section]) -> go.Figure:
    """Overlap of the experts of one token in two contexts, by layer."""
    found = [layer["token_pairs"]["same_token"] for layer in layers]
    return line_figure(
        _names(layers),
        {"same token": [one["overlap"] for one in found]},
        {"any two tokens": [one["overlap_any"] for one in found]},
        "MoE layer",
        "share of experts in common",
    )


def sequence_figure(layers: Sequence[Section], measure: str, title: str) -> go.Figure:
    """A similarity of pairs of sequences within and across domains, by layer."""
    means = {
        f"{where} domains": [layer["sequences"][where][measure] for layer in layers] for where in ("within", "across")
    }
    return _means_figure(layers, means, title)


def pooled_figure(layers: Sequence[Section]) -> go.Figure:
    """Cosine of mean states of pairs of sequences within and across domains, by space and layer."""
    means = {
        f"{name}, {where} domains": [layer["sequences"][where][f"pooled_{space}"] for layer in layers]
        for space, name in SPACES.items()
        for where in ("within", "across")
    }
    return _means_figure(layers, means, "cosine of mean states")


def _means_figure(layers: Sequence[Section], means: Mapping[str, Sequence[Section]], title: str) -> go.Figure:
    """Means over pairs with their intervals, by layer; a line without a value is left out."""
    there = {name: of_one for name, of_one in means.items() if any(mean["value"] is not None for mean in of_one)}
    figure = line_figure(
        _names(layers), {name: [mean["value"] for mean in of_one] for name, of_one in there.items()}, {}, "MoE layer",
        title,
    )  # fmt: skip
    for trace, of_one in zip(figure.data, there.values(), strict=True):
        values = [mean["value"] or 0.0 for mean in of_one]
        ends = [mean["interval"] or (value, value) for mean, value in zip(of_one, values, strict=True)]
        trace.error_y = {
            "array": [high - value for (_, high), value in zip(ends, values, strict=True)],
            "arrayminus": [value - low for (low, _), value in zip(ends, values, strict=True)],
            "thickness": 1.2,
        }
    return figure


def sequence_correlation_figure(layers: Sequence[Section], usage: str) -> go.Figure:
    """Correlation of the cosine of mean states with a similarity of expert usage, by layer and space."""
    means = {
        name: [layer["sequences"]["correlation"][f"pooled_{space}"][usage] for layer in layers]
        for space, name in SPACES.items()
    }
    return _means_figure(layers, means, "correlation with usage")


def trajectory_figure(layers: Sequence[Section]) -> go.Figure:
    """Jaccard of the experts of pairs of texts, by problem and author, over layers."""
    means = {name: [layer["trajectories"][name] for layer in layers] for name in layers[0]["trajectories"]}
    return _means_figure(layers, means, "Jaccard")


def shared_direction_figure(layers: Sequence[Section]) -> go.Figure:
    """Energy along the first singular direction and of the mean, of states and of logits, by layer."""
    found = [layer["shared_direction"] for layer in layers]
    return line_figure(
        _names(layers),
        {
            "of hidden states": [one["state_energy"] for one in found],
            "of logits": [one["logit_energy"] for one in found],
            "mean of hidden states": [one["mean_state_energy"] for one in found],
            "mean of logits": [one["mean_logit_energy"] for one in found],
        },
        {},
        "MoE layer",
        "share of energy",
    )


def alignment_figure(layer: Section) -> go.Figure:
    """Response of a router along each singular direction of the data, over that of random routers."""
    ratios = layer["alignment"]["ratio"]
    index = list(range(1, len(ratios) + 1))
    figure = new_figure("singular direction of the states", "response over that of a random router")
    figure.add_scatter(x=index, y=ratios, name="router", mode="lines+markers", marker={"size": 4})
    figure.add_scatter(x=[1, len(ratios)], y=[1, 1], name="random routers", mode="lines", line=CHANCE)
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    return figure


def probe_figure(layers: Sequence[Section], name: str) -> go.Figure:
    """Accuracy of probes of each part of the state for a class, by layer."""
    found = [layer for layer in layers if name in layer["probes"]["accuracy"]]
    accuracy = [layer["probes"]["accuracy"][name] for layer in found]
    observed = {shown: [one[part]["accuracy"] for one in accuracy] for part, shown in PARTS.items()}
    chance = {
        "as many random directions as control": [one["random"]["accuracy"] for one in accuracy],
        "most frequent": [layer["probes"]["most_frequent"][name] for layer in found],
    }
    return line_figure(_names(found), observed, chance, "MoE layer", "accuracy")


def truncation_figure(layer: Section) -> go.Figure:
    """Agreement of ranked experts over the number of singular directions that are kept, of one layer."""
    found = layer["truncation"]
    figure = new_figure("singular directions kept", "share of tokens with the same expert")
    for rank, of_rank in enumerate(zip(*found["agreement"], strict=True), start=1):
        figure.add_scatter(x=found["kept"], y=list(of_rank), name=f"rank {rank}", mode="lines+markers")
    ends = [found["kept"][0], found["kept"][-1]]
    for rank, null in enumerate(found["agreement_null"], start=1):
        figure.add_scatter(x=ends, y=[null, null], name=f"rank {rank} by chance", mode="lines", line=CHANCE)
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    return figure


def agreement_figure(pairs: Sequence[Section]) -> go.Figure:
    """Agreement of neighbouring layers, measured and predicted from steps of other tokens."""
    return line_figure(
        _pair_names(pairs),
        {"measured": [one["agreement"] for one in pairs], "predicted": [one["predicted_agreement"] for one in pairs]},
        {"independent layers": [one["agreement_null"] for one in pairs]},
        "MoE layers",
        "share of tokens",
    )


def step_figure(pairs: Sequence[Section]) -> go.Figure:
    """Steps of states from layer to layer, seen and unseen."""
    return line_figure(
        _pair_names(pairs),
        {
            "seen by the router": [one["step_row"] for one in pairs],
            "of it, common to all tokens": [one["step_row_common"] for one in pairs],
            "not seen": [one["step_null"] for one in pairs],
        },
        {},
        "MoE layers",
        "step over spread",
    )


def subspace_figure(pairs: Sequence[Section]) -> go.Figure:
    """Overlap of what neighbouring routers see, and of what the data fill of it."""
    return line_figure(
        _pair_names(pairs),
        {"routers": [one["router_overlap"] for one in pairs], "data": [one["seen_overlap"] for one in pairs]},
        {
            "routers by chance": [one["router_overlap_null"] for one in pairs],
            "data by chance": [one["seen_overlap_null"] for one in pairs],
        },
        "MoE layers",
        "mean squared cosine",
    )


def block_figure(pairs: Sequence[Section]) -> go.Figure:
    """Agreement of the first layer of each block with its later ones, measured and predicted, over their distance."""
    lines = {"measured": ("agreement", _SOLID), "predicted": ("predicted_agreement", _DASHED)}
    return _along_blocks(pairs, {**lines, "by chance": ("agreement_null", CHANCE)}, "share of tokens")


def block_step_figure(pairs: Sequence[Section]) -> go.Figure:
    """Steps of states from the first layer of each block to its later ones, seen and unseen, over their distance."""
    lines = {"seen": ("step_row", _SOLID), "not seen": ("step_null", _DASHED)}
    return _along_blocks(pairs, lines, "step over spread")


def _along_blocks(pairs: Sequence[Section], lines: Mapping[str, tuple[str, Section]], title: str) -> go.Figure:
    """For each block the lines by name, each with its figure of a pair and its style."""
    figure = new_figure("layers from the first of the block", title)
    for first in sorted({pair["first_layer"] for pair in pairs}):
        of_block = [pair for pair in pairs if pair["first_layer"] == first]
        for name, (key, line) in lines.items():
            figure.add_scatter(
                x=[pair["second_layer"] - first for pair in of_block], y=[pair[key] for pair in of_block],
                name=f"from layer {first}, {name}", mode="lines" if line is CHANCE else "lines+markers", line=line,
            )  # fmt: skip
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _names(layers: Sequence[Section]) -> list[int]:
    return [layer["layer"] for layer in layers]


def _pair_names(pairs: Sequence[Section]) -> list[str]:
    return [f"{one['first_layer']}-{one['first_layer'] + 1}" for one in pairs]
