"""The figures of a study: bits per byte by seed, curves with bands over training, quality over training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.reports.figure_style import CHANCE, new_figure
from pathmoe_eval.studies.comparison import VariantComparison
from pathmoe_eval.studies.figures import PRIMARY

_NUM_COLOURS = 6
"""Of a page; further variants have other marks."""
_SYMBOLS = ("circle", "diamond-open", "x", "square-open")
_DASHES = ("solid", "dash", "dot", "dashdot")

_SECONDS = "seconds"


def seeds_figure(compared: Sequence[VariantComparison], order: Sequence[str]) -> go.Figure:
    """Bits per byte of each run as a point, and of each variant the mean with its 95% interval over seeds.

    Args:
        compared: the variants, the best one first.
        order: names of all variants, by which colours are given.
    """
    names = [escape(one.name) for one in compared]
    figure = new_figure("bits per byte", "", height=120 + 40 * len(compared))
    places = []
    for one in compared:
        measured, place = one.figures[PRIMARY], order.index(one.name)
        places += [place, place]
        name = escape(one.name)
        figure.add_scatter(
            x=list(measured.by_seed.values()),
            y=[name] * len(measured.by_seed),
            mode="markers",
            marker={"size": 7, "symbol": "circle-open"},
            customdata=list(measured.by_seed),
            hovertemplate=f"{name}, seed %{{customdata}}: %{{x:.4f}}<extra></extra>",
        )
        ends = measured.interval or (measured.mean, measured.mean)
        figure.add_scatter(
            x=[measured.mean],
            y=[name],
            mode="markers",
            marker={"size": 10, "symbol": "diamond"},
            error_x={
                "array": [ends[1] - measured.mean], "arrayminus": [measured.mean - ends[0]], "thickness": 1.5,
            },
            hovertemplate=f"{name}: mean %{{x:.4f}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(showlegend=False, meta={"series": places})
    # An axis of names begins at the bottom.
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names[::-1])
    return figure


def curves_figure(curves: Mapping[str, Sequence[Mapping[int, float]]], order: Sequence[str], axis: str) -> go.Figure:
    """A figure over training tokens: the mean over seeds as a line, from the lowest to the highest as a band.

    Args:
        curves: of each variant those of its runs, values by tokens.
        order: names of all variants, by which colours are given.
        axis: what the values are.
    """
    figure = new_figure("training tokens", axis, height=420)
    places = []
    for name, of_runs in curves.items():
        place = order.index(name)
        tokens = sorted(set.intersection(*(set(curve) for curve in of_runs)))
        by_tokens = [[curve[at] for curve in of_runs] for at in tokens]
        edge: dict[str, Any] = {
            "x": tokens, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False,
            "legendgroup": name,
        }  # fmt: skip
        figure.add_scatter(y=[min(values) for values in by_tokens], **edge)
        figure.add_scatter(y=[max(values) for values in by_tokens], fill="tonexty", **edge)
        figure.add_scatter(
            x=tokens,
            y=[sum(values) / len(values) for values in by_tokens],
            name=escape(name),
            legendgroup=name,
            mode="lines+markers",
            line={"dash": _of_place(_DASHES, place)},
            marker={"size": 5, "symbol": _of_place(_SYMBOLS, place)},
            hovertemplate="%{x:,} tokens: %{y:.4f}",
        )
        places += [place] * 3
    figure.update_layout(meta={"series": places})
    return figure


def pareto_figure(compared: Sequence[VariantComparison], order: Sequence[str]) -> go.Figure:
    """Bits per byte over training time: each run a small point, each variant's mean a large one.

    The dotted line joins the means that no other mean beats in both.

    Args:
        compared: the variants, the best one first.
        order: names of all variants, by which colours are given.
    """
    figure = new_figure("training time, s", "bits per byte", height=420)
    places = []
    timed = [one for one in compared if _SECONDS in one.figures]
    for one in timed:
        place, name = order.index(one.name), escape(one.name)
        symbol = _of_place(_SYMBOLS, place)
        seconds, quality = one.figures[_SECONDS], one.figures[PRIMARY]
        seeds = sorted(seconds.by_seed.keys() & quality.by_seed.keys())
        figure.add_scatter(
            x=[seconds.by_seed[seed] for seed in seeds],
            y=[quality.by_seed[seed] for seed in seeds],
            mode="markers",
            marker={"size": 6, "symbol": symbol, "opacity": 0.45},
            legendgroup=name,
            showlegend=False,
            customdata=seeds,
            hovertemplate=f"{name}, seed %{{customdata}}: %{{x:.0f}} s, %{{y:.4f}}<extra></extra>",
        )
        figure.add_scatter(
            x=[seconds.mean],
            y=[quality.mean],
            name=name,
            legendgroup=name,
            mode="markers",
            marker={"size": 13, "symbol": symbol},
            hovertemplate=f"{name}: %{{x:.0f}} s, %{{y:.4f}}<extra></extra>",
        )
        places += [place, place]
    front = pareto_front([(one.figures[_SECONDS].mean, one.figures[PRIMARY].mean) for one in timed])
    if len(front) > 1:
        figure.add_scatter(
            x=[x for x, _ in front], y=[y for _, y in front], mode="lines", line=CHANCE, name="not beaten in both",
            hoverinfo="skip",
        )  # fmt: skip
        places.append(0)
    figure.update_layout(meta={"series": places})
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one is below in one coordinate and not above in the other, by the first coordinate."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _of_place(marks: Sequence[str], place: int) -> str:
    return marks[place // _NUM_COLOURS % len(marks)]
