"""Figures of concentration: how frequency falls with rank, how entropy grows with tokens, what the top paths carry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.reports.figure_style import CHANCE, GREY, new_figure

Section = Mapping[str, Any]


def zipf_figure(rank_frequencies: Mapping[str, Section]) -> go.Figure:
    """Tokens on the r-th most frequent path over r, both logarithmic; for a single curve with its fitted line.

    Args:
        rank_frequencies: name of each curve and its `RankFrequency` as a dict.
    """
    figure = new_figure("rank of the path", "tokens on it")
    for name, points in rank_frequencies.items():
        figure.add_scatter(
            x=list(points["rank"]),
            y=list(points["count"]),
            name=escape(name),
            mode="lines+markers",
            marker={"size": 5},
            hovertemplate="rank %{x:,}: %{y:,} tokens",
        )
    if len(rank_frequencies) == 1:
        (points,) = rank_frequencies.values()
        _add_fit(figure, points)
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1)
    return figure


def _add_fit(figure: go.Figure, points: Section) -> None:
    """The least-squares line through the logarithms of the points in the range of the fit."""
    if points["slope"] is None:
        return
    first, last = points["slope_first_rank"], points["slope_last_rank"]
    logs = [
        (math.log(rank), math.log(count))
        for rank, count in zip(points["rank"], points["count"], strict=True)
        if first <= rank <= last
    ]
    x_mean, y_mean = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    ends = [logs[0][0], logs[-1][0]]
    figure.add_scatter(
        x=[math.exp(x) for x in ends],
        y=[math.exp(y_mean + points["slope"] * (x - x_mean)) for x in ends],
        name=f"slope {points['slope']:.2f}",
        mode="lines",
        line={"color": GREY, "width": 2},
        hoverinfo="skip",
    )


def rarefaction_figure(curves: Mapping[str, Section]) -> go.Figure:
    """Entropy of random subsamples over their tokens, below its ceiling, log2 of the tokens.

    Args:
        curves: name of each curve and its `Rarefaction` as a dict.
    """
    figure = new_figure("tokens", "entropy of paths, bits")
    for name, curve in curves.items():
        figure.add_scatter(
            x=list(curve["num_tokens"]),
            y=list(curve["entropy_bits"]),
            name=escape(name),
            mode="lines+markers",
            marker={"size": 5},
            customdata=list(curve["num_paths"]),
            hovertemplate="%{x:,} tokens: %{y:.2f} bits, %{customdata:,.0f} paths",
        )
    grid = sorted({tokens for curve in curves.values() for tokens in curve["num_tokens"]})
    figure.add_scatter(
        x=grid, y=[math.log2(tokens) for tokens in grid], name="ceiling, log2 of the tokens", mode="lines", line=CHANCE
    )
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(rangemode="tozero")
    return figure


def coverage_figure(coverage: Section) -> go.Figure:
    """Share of the tokens on the K most frequent paths, and what independent layers with the same loads would give.

    Args:
        coverage: `PathCoverage` as a dict.
    """
    figure = new_figure("most frequent paths", "share of the tokens")
    labels = [f"{paths:,}" for paths in coverage["top_paths"]]
    figure.add_bar(x=labels, y=list(coverage["share"]), name="observed", hovertemplate="%{x} paths: %{y:.2%}")
    if coverage["share_null"] is not None:
        figure.add_bar(
            x=labels,
            y=list(coverage["share_null"]),
            name="independent layers",
            marker={"color": GREY},
            hovertemplate="%{x} paths: %{y:.2%}",
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure
