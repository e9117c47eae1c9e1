"""The perturbation chart: how much perplexity each intervention costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.figure_style import CHANCE, new_figure
from pathmoe_eval.summary import perturbed_name

Section = Mapping[str, Any]

_FACTOR_OF_PERCENT = 0.01


def perturbation_figure(section: Section) -> go.Figure:
    """Perplexity under each intervention over that of the free model, on a logarithmic axis, the free model a line.

    Bars have the intervals over documents; the two permutations stand side by side at the top.

    Args:
        section: `Robustness` as a dict.
    """
    # The two permutations are the first of the interventions; an axis of names begins at the bottom.
    shown = [one for one in section["perturbed"] if one["rise_percent"] is not None][::-1]
    factors = [_factor(one["rise_percent"]) for one in shown]
    ends = [one["rise_percent_interval"] or (one["rise_percent"], one["rise_percent"]) for one in shown]
    figure = new_figure("perplexity over the free model's", "", height=90 + 26 * len(shown))
    figure.add_scatter(
        x=factors,
        y=[perturbed_name(one) for one in shown],
        mode="markers",
        marker={"size": 9},
        error_x={
            "array": [_factor(high) - factor for (_, high), factor in zip(ends, factors, strict=True)],
            "arrayminus": [factor - _factor(low) for (low, _), factor in zip(ends, factors, strict=True)],
            "thickness": 1.5,
        },
        customdata=[one["perplexity"] for one in shown],
        hovertemplate="%{y}: perplexity %{customdata:,.4g}, %{x:.4g} times the free model's<extra></extra>",
    )
    figure.add_vline(x=1, line=CHANCE)
    figure.update_xaxes(type="log", dtick=1 if max(factors, default=1) > 10 else "D2")
    figure.update_yaxes(type="category")
    return figure


def _factor(rise_percent: float) -> float:
    return 1 + _FACTOR_OF_PERCENT * rise_percent
