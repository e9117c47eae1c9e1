"""The perturbation chart: how much perplexity each intervention costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.reports.figure_style import CHANCE, new_figure
from pathmoe_eval.reports.summary import perturbed_name

Section = Mapping[str, Any]

_FACTOR_OF_PERCENT = 0.01


def perturbation_figure(sections: Mapping[str, Section]) -> go.Figure:
    """Perplexity under each intervention over that of the free model, on a logarithmic axis, the free model a line.

    Bars have the intervals over documents. Interventions keep their order, so that the two permutations stand side by
    side; one whose perplexity is beyond all bounds has no point.

    Args:
        sections: name of each model and its `Robustness` as a dict.
    """
    names = list(dict.fromkeys(perturbed_name(one) for section in sections.values() for one in section["perturbed"]))
    figure = new_figure("perplexity over the free model's", "", height=110 + (20 + 8 * len(sections)) * len(names))
    for model, section in sections.items():
        _add_model(figure, escape(model), [one for one in section["perturbed"] if one["rise_percent"] is not None])
    figure.add_vline(x=1, line=CHANCE)
    figure.update_xaxes(type="log", **_ticks(max((x for points in figure.data for x in points.x), default=1.0)))
    # An axis of names begins at the bottom.
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names[::-1])
    figure.update_layout(showlegend=any(sections), scattermode="group")
    return figure


def _add_model(figure: go.Figure, model: str, perturbed: Sequence[Section]) -> None:
    factors = [_factor(one["rise_percent"]) for one in perturbed]
    ends = [one["rise_percent_interval"] or (one["rise_percent"], one["rise_percent"]) for one in perturbed]
    figure.add_scatter(
        x=factors,
        y=[perturbed_name(one) for one in perturbed],
        name=model,
        orientation="h",
        mode="markers",
        marker={"size": 9},
        error_x={
            "array": [max(0.0, _factor(high) - factor) for (_, high), factor in zip(ends, factors, strict=True)],
            "arrayminus": [max(0.0, factor - _factor(low)) for (low, _), factor in zip(ends, factors, strict=True)],
            "thickness": 1.5,
        },
        customdata=[one["perplexity"] for one in perturbed],
        hovertemplate="%{y}: perplexity %{customdata:,.4g}, %{x:.4g} times the free model's",
    )


def _ticks(highest: float) -> dict[str, list[Any]]:
    """Written out in full, since plotly shortens 20 and 50 to 2 and 5; powers of ten alone where there are many."""
    values = [multiple * 10**power for power in range(100) for multiple in ((1, 2, 5) if highest < 1000 else (1,))]
    return {"tickvals": [0.5, *values], "ticktext": [f"{value:,g}" for value in (0.5, *values)]}


def _factor(rise_percent: float) -> float:
    return 1 + _FACTOR_OF_PERCENT * rise_percent
