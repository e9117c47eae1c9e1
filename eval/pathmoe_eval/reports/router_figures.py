"""Figures of load and routers, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.experts.router_scores import MARGIN_QUANTILES
from pathmoe_eval.reports.figure_style import GREY, heat_map, line_figure, router_bounds

Section = Mapping[str, Any]


def load_figure(balance: Section, router_of_layer: Sequence[int]) -> go.Figure:
    """Load of each expert of each layer as a multiple of an equal share (`LoadBalance` as a dict)."""
    relative = [[count * len(counts) / sum(counts) for count in counts] for counts in balance["counts"]]
    figure = heat_map(
        relative, "expert", "layer", hover="layer %{y}, expert %{x}: %{z:.2f} of an equal share", middle=1.0
    )
    for layer in router_bounds(router_of_layer):
        figure.add_hline(y=layer - 0.5, line={"color": GREY, "width": 1})
    figure.update_layout(height=max(240, 110 + 14 * len(relative)))
    return figure


def busiest_figure(balance: Section) -> go.Figure:
    """Picks of each layer's busiest expert over the mean (`LoadBalance` as a dict)."""
    values = balance["max_over_mean"]
    return _layers_figure({"observed": values}, {"equal experts": balance["max_over_mean_null"]}, "busiest over mean")


def router_entropy_figure(scores: Section) -> go.Figure:
    """Mean entropy of each layer's scores (`RouterScores` as a dict)."""
    return _layers_figure({"observed": scores["entropy_bits"]}, {"equal scores": scores["entropy_bits_null"]}, "bits")


def margin_figure(scores: Section) -> go.Figure | None:
    """Quantiles of the margin between the last chosen logit and the next; None where every expert is chosen."""
    if scores["margin_logits_quantiles"] is None:
        return None
    quantiles = list(zip(*scores["margin_logits_quantiles"], strict=True))
    of = {share: quantiles[place] for place, share in enumerate(MARGIN_QUANTILES)}
    figure = _layers_figure({"median": of[0.5], "5%": of[0.05], "95%": of[0.95]}, {}, "logits")
    figure.update_traces(line={"dash": "dash"}, selector=lambda trace: trace.name != "median")
    return figure


def share_figure(values: Sequence[float], chance: float | Sequence[float], y_title: str) -> go.Figure:
    """A share of each layer beside what chance gives, one number or one a layer."""
    figure = _layers_figure({"observed": values}, {"chance": chance}, y_title)
    figure.update_yaxes(tickformat=".0%")
    return figure


def bits_figure(values: Sequence[float], chance: Sequence[float]) -> go.Figure:
    """Bits of each layer beside those of permuted labels."""
    return _layers_figure({"observed": values}, {"permuted": chance}, "bits")


def _layers_figure(
    observed: Mapping[str, Sequence[float]], chance: Mapping[str, float | Sequence[float]], y_title: str
) -> go.Figure:
    num_layers = len(next(iter(observed.values())))
    spread = {name: [value] * num_layers if isinstance(value, int | float) else value for name, value in chance.items()}
    return line_figure(list(range(num_layers)), observed, spread, "layer", y_title)
