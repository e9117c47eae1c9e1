"""A tree of completions as it is drawn: tokens to the right, a line for each stretch between forks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.locality.tree_summary import MIXED, UNGROUPED
from pathmoe_eval.reports.figure_style import BLOCK_RGB, GREY, new_figure

Section = Mapping[str, Any]

_NAMED_GROUPS = 4
_REST = len(BLOCK_RGB) - 1


def tree_figure(drawn: Section) -> go.Figure:
    """`DrawnTree` as a dict; stretches have the colour of the one group of equivalent programs that they lead to."""
    lines: dict[str, tuple[list[float | None], list[float | None]]] = {}
    for segment, (parent, first, last, height, group) in enumerate(
        zip(*(drawn[f"{name}_S"] for name in ("parent", "first_depth", "last_depth", "height", "group")), strict=True)
    ):
        above = height if parent < 0 else drawn["height_S"][parent]
        x, y = lines.setdefault(_name(group), ([], []))
        # The stretch begins at its fork: down to its own height, then along.
        x += [first, first, last, None]
        y += [above, height, height, None]
        if segment == 0:
            x[:1], y[:1] = [], []
    figure = new_figure("tokens after the prompt", "", height=min(900, 160 + 6 * drawn["num_completions"]))
    for name in _NAMES:
        if name in lines:
            x, y = lines[name]
            figure.add_scatter(
                x=x, y=y, name=name, mode="lines", line={"color": _COLOUR[name], "width": 1.5}, hoverinfo="skip"
            )
    figure.update_yaxes(autorange="reversed", showticklabels=False, ticks="", showgrid=False, zeroline=False)
    return figure


def _name(group: int) -> str:
    if group == MIXED:
        return "several groups"
    if group == UNGROUPED:
        return "does not compile"
    return f"group {group + 1}" if group < _NAMED_GROUPS else "smaller groups"


def _rgb(place: int) -> str:
    return f"rgb({BLOCK_RGB[place]})"


_COLOUR = {
    "several groups": GREY,
    **{f"group {group + 1}": _rgb(group) for group in range(_NAMED_GROUPS)},
    "smaller groups": _rgb(_REST - 1),
    "does not compile": _rgb(_REST),
}
_NAMES = tuple(_COLOUR)
