"""Figures of layers and pairs of layers: overlap, agreement, information, matching, engagement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.reports.figure_style import GREY, heat_map, line_figure, router_bounds

Section = Mapping[str, Any]
Square = Sequence[Sequence[float | None]]


def jaccard_figure(overlap: Section, router_of_layer: Sequence[int]) -> go.Figure:
    """Mean Jaccard of the top-k sets of all pairs of layers (`LayerOverlap` as a dict), the diagonal left out."""
    return _pair_map(overlap["jaccard"], router_of_layer, "Jaccard %{z:.3f}")


def jaccard_ratio_figure(overlap: Section, router_of_layer: Sequence[int]) -> go.Figure:
    """The same over what independent layers with the same loads give, 1 in a neutral colour."""
    null = overlap["jaccard_null_loads"] or overlap["jaccard_null_loads_ratio"]
    ratios = [
        [value / expected if expected else None for value, expected in zip(*rows, strict=True)]
        for rows in zip(overlap["jaccard"], null, strict=True)
    ]
    return _pair_map(ratios, router_of_layer, "%{z:.2f} times chance", middle=1.0)


def information_map(information: Section, router_of_layer: Sequence[int]) -> go.Figure:
    """Corrected mutual information of all pairs of layers (`LayerInformation` as a dict), the diagonal left out."""
    return _pair_map(information["corrected_bits"], router_of_layer, "%{z:.3f} bits")


def _pair_map(values: Square, router_of_layer: Sequence[int], hover: str, middle: float | None = None) -> go.Figure:
    off_diagonal = [
        [None if row == column else value for column, value in enumerate(values_of_row)]
        for row, values_of_row in enumerate(values)
    ]
    figure = heat_map(off_diagonal, "layer", "layer", hover="layers %{y} and %{x}: " + hover, middle=middle)
    for layer in router_bounds(router_of_layer):
        figure.add_vline(x=layer - 0.5, line={"color": GREY, "width": 1})
        figure.add_hline(y=layer - 0.5, line={"color": GREY, "width": 1})
    figure.update_xaxes(constrain="domain")
    figure.update_yaxes(scaleanchor="x", constrain="domain")
    figure.update_layout(height=420)
    return figure


def information_figure(information: Section) -> go.Figure:
    """Mutual information of neighbouring layers against permuted tokens (`LayerInformation` as a dict)."""
    return _pairs_figure(
        {"corrected": information["adjacent_corrected_bits"]},
        {"highest of the permutations": information["adjacent_bits_null_highest"]},
        "bits",
    )


def matching_figure(matching: Section) -> go.Figure:
    """Agreement of neighbouring layers after the best matching of experts (`LayerMatching` as a dict)."""
    figure = _pairs_figure(
        {"after the best matching": matching["adjacent_agreement"]},
        {"permuted tokens, matched as well": matching["adjacent_agreement_null_permuted"]},
        "share of the tokens",
    )
    figure.update_yaxes(tickformat=".0%")
    return figure


def agreement_figure(agreement: Section) -> go.Figure:
    """Share of tokens with the same top-1 index in neighbouring layers (`AdjacentAgreement` as a dict)."""
    figure = _pairs_figure(
        {"same index": agreement["agreement"]},
        {"independent layers, same loads": agreement["agreement_null"]},
        "share of the tokens",
    )
    figure.update_yaxes(tickformat=".0%")
    return figure


def _pairs_figure(
    observed: Mapping[str, Sequence[float]], chance: Mapping[str, Sequence[float]], y_title: str
) -> go.Figure:
    (values,) = observed.values()
    labels = [f"{layer}-{layer + 1}" for layer in range(len(values))]
    return line_figure(labels, observed, chance, "layers", y_title)


def engagement_figure(scope: Section) -> go.Figure:
    """Share of tokens that keep an index for at least m layers, over m (`EngagementInScope` as a dict).

    The axis is logarithmic, so lengths that no token reaches have no point.
    """
    observed, null = scope["observed"]["token_share"], scope["null_loads"]["token_share"]
    figure = line_figure(
        list(range(1, len(observed) + 1)),
        {"observed": [value or None for value in observed]},
        {"independent layers, same loads": [value or None for value in null]},
        "consecutive layers, at least",
        "share of the tokens",
    )
    lowest = min(value for value in observed if value > 0)
    figure.update_yaxes(type="log", dtick=1, tickformat="~%", range=_decades(lowest))
    return figure


def _decades(lowest: float) -> list[float]:
    """Range of a logarithmic axis from below the lowest observed share to above 1; chance may leave it."""
    return [math.floor(math.log10(lowest)) - 0.1, 0.1]
