"""What all figures of a report have in common: quiet axes, chance in grey, and no colour that one scheme would hide.

Figures carry no background and no text colour: the page gives them those of the reader's scheme, light or dark, and the
colours of traces that name none (see `page.js`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

GREY = "#8a8f98"
CHANCE = {"color": GREY, "dash": "dot", "width": 2}

# Readable on white and on black, for what must name its colour (Tol's muted scheme, without its darkest).
BLOCK_RGB = ("68,119,170", "204,102,119", "34,136,51", "170,119,51", "136,112,187", "51,153,153")

_MAX_TICKS = 16
_MAX_NAMES = 10
_MARGIN = {"l": 64, "r": 16, "t": 16, "b": 52}


def new_figure(x_title: str, y_title: str, **layout: Any) -> go.Figure:
    """An empty figure; its legend lies above it, so that a narrow window keeps its width for the data."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        margin=_MARGIN,
        height=360,
        hovermode="closest",
        showlegend=True,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0},
        xaxis={"title": {"text": x_title}, "automargin": True},
        yaxis={"title": {"text": y_title}, "automargin": True},
    )
    figure.update_layout(**layout)
    return figure


def line_figure(
    labels: Sequence[int | str],
    observed: Mapping[str, Sequence[float | None]],
    chance: Mapping[str, Sequence[float | None]],
    x_title: str,
    y_title: str,
) -> go.Figure:
    """Observed figures as lines with points, what chance gives as dotted ones in grey.

    Args:
        labels: names of the points, the layers or pairs of layers.
        observed: name of each line and its values, one for each label.
        chance: the same for what chance gives.
        x_title: of the axis.
        y_title: of the axis.
    """
    figure = new_figure(x_title, y_title)
    for name, values in observed.items():
        figure.add_scatter(x=list(labels), y=list(values), name=name, mode="lines+markers")
    for name, values in chance.items():
        figure.add_scatter(x=list(labels), y=list(values), name=name, mode="lines", line=CHANCE)
    if isinstance(labels[0], str):
        figure.update_xaxes(type="category", dtick=-(-len(labels) // _MAX_NAMES))
    else:
        set_whole_ticks(figure.layout.xaxis, len(labels))
    figure.update_yaxes(rangemode="tozero")
    return figure


def heat_map(
    values: Sequence[Sequence[float | None]], x_title: str, y_title: str, *, hover: str, middle: float | None = None
) -> go.Figure:
    """Values as colours, the first row on top.

    Args:
        values: [rows][columns]; None leaves a cell empty.
        x_title: of the columns, counted from 0.
        y_title: of the rows, counted from 0.
        hover: template of the text of a cell, with %{x}, %{y} and %{z}.
        middle: the value of the neutral colour, for values from 0 up that lie on both sides of it.
    """
    figure = new_figure(x_title, y_title)
    figure.add_heatmap(z=[list(row) for row in values], coloraxis="coloraxis", hovertemplate=f"{hover}<extra></extra>")
    colours: dict[str, Any] = {"colorbar": {"thickness": 12, "outlinewidth": 0}}
    if middle is None:
        figure.update_layout(meta={"scale": "sequential"})
    else:
        highest = max((value for row in values for value in row if value is not None), default=middle)
        highest = max(highest, 1.5 * middle)
        figure.update_layout(meta={"scale": "diverging", "middle": middle / highest})
        colours |= {"cmin": 0, "cmax": highest}
    figure.update_layout(coloraxis=colours)
    set_whole_ticks(figure.layout.xaxis, max(map(len, values)))
    set_whole_ticks(figure.layout.yaxis, len(values))
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def set_whole_ticks(axis: Any, num_values: int) -> None:
    """Ticks of an axis of layers or experts at whole numbers, of which there are so many."""
    axis.update(tick0=0, dtick=-(-num_values // _MAX_TICKS))


def router_bounds(router_of_layer: Sequence[int]) -> list[int]:
    """First layers of all blocks that share a router but the first; none where each layer has its own."""
    layers = range(1, len(router_of_layer))
    bounds = [layer for layer in layers if router_of_layer[layer] != router_of_layer[layer - 1]]
    return [] if len(bounds) == len(layers) else bounds
