"""The flow figure: a column for each layer, in it a box for each expert, a ribbon for each frequent transition."""

# Shapes: L layers, A = L - 1 pairs of adjacent layers, E experts, R ribbons.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from pathmoe_eval.reports.figure_style import BLOCK_RGB, new_figure

# Of these the smallest that leaves no more ribbons than an eye and a browser take.
LEAST_SHARES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
MAX_RIBBONS_OF_A_PAIR = 60

_HEIGHT, _TOP, _BOTTOM, _SIDE = 520, 8, 40, 16
_GAP = 3


class FlowPicture(NamedTuple):
    """The figure, and what of the transitions it shows."""

    figure: go.Figure
    least_share: float
    """Share of the tokens that a transition needs to be shown."""
    shown_share: float
    """Share of all transitions, by tokens, that are shown."""


def flow_picture(counts: Sequence[Sequence[Sequence[int]]], router_of_layer: Sequence[int]) -> FlowPicture:
    """Top-1 transitions between neighbouring layers as a Sankey diagram, coloured by the router of the left layer.

    Args:
        counts: [L - 1][E][E], as `LayerTransitions.counts`.
        router_of_layer: one integer a layer, equal where layers share a router.
    """
    counts_AEE = np.array(counts, dtype=np.int64)
    num_tokens = int(counts_AEE[0].sum())
    most = MAX_RIBBONS_OF_A_PAIR * len(counts_AEE)
    least_share = next(
        (share for share in LEAST_SHARES if np.sum(counts_AEE >= share * num_tokens) <= most), LEAST_SHARES[-1]
    )
    shown_AEE = np.where(counts_AEE >= least_share * num_tokens, counts_AEE, 0)
    figure = new_figure("", "", height=_HEIGHT, margin={"l": _SIDE, "r": _SIDE, "t": _TOP, "b": _BOTTOM})
    # A box is as high as what comes or goes, whichever is more. Plotly drops a box without ribbons, and then takes the
    # places of others for those of the next ones; so there are only boxes that have some.
    comes_LE, goes_LE = np.zeros((2, len(router_of_layer), counts_AEE.shape[1]), dtype=np.int64)
    comes_LE[1:], goes_LE[:-1] = shown_AEE.sum(axis=1), shown_AEE.sum(axis=2)
    tokens_LE = np.maximum(comes_LE, goes_LE)
    figure.add_sankey(
        arrangement="fixed",
        orientation="h",
        node=_nodes(tokens_LE, router_of_layer),
        link=_links(shown_AEE, np.cumsum(tokens_LE > 0).reshape(tokens_LE.shape) - 1, router_of_layer, num_tokens),
    )
    figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})
    for layer in range(len(router_of_layer)):
        figure.add_annotation(
            text=str(layer), x=layer / (len(router_of_layer) - 1), y=0, yshift=-14, xref="paper", yref="paper",
            showarrow=False,
        )  # fmt: skip
    figure.add_annotation(text="layer", x=0.5, y=0, yshift=-32, xref="paper", yref="paper", showarrow=False)
    return FlowPicture(figure, least_share, float(shown_AEE.sum() / counts_AEE.sum()))


def _colour(router: int, routers: Sequence[int], alpha: float) -> str:
    place = sorted(set(routers)).index(router)
    return f"rgba({BLOCK_RGB[place % len(BLOCK_RGB)]},{alpha})"


def _nodes(tokens_LE: NDArray[np.int64], routers: Sequence[int]) -> dict[str, Any]:
    """Boxes of the experts that have ribbons, layer by layer, stacked in the order of their indices."""
    layers, experts = (places.tolist() for places in np.nonzero(tokens_LE))
    last = len(routers) - 1
    return {
        # Plotly takes a place of 0 for none.
        "x": [min(max(layer / last, 1e-3), 1 - 1e-3) for layer in layers],
        "y": _centres(tokens_LE)[tokens_LE > 0].tolist(),
        "label": [""] * len(layers),
        "color": [_colour(routers[layer], routers, 1.0) for layer in layers],
        "customdata": [f"layer {layer}, expert {expert}" for layer, expert in zip(layers, experts, strict=True)],
        "hovertemplate": "%{customdata}: %{value:,} tokens in ribbons<extra></extra>",
        "line": {"width": 0},
        "thickness": 8,
        "pad": _GAP,
    }


def _centres(tokens_LE: NDArray[np.int64]) -> NDArray[np.float64]:
    """Heights of the boxes' centres, from 0 (top) to 1, as plotly scales boxes: the fullest column fills the height."""
    num_experts = tokens_LE.shape[1]
    gap = min(_GAP / (_HEIGHT - _TOP - _BOTTOM), 0.5 / num_experts)
    is_shown_LE = tokens_LE > 0
    total = max(1, int(tokens_LE.sum(axis=1).max()))
    scale = (1 - gap * (num_experts - 1)) / total
    ends_LE = np.cumsum(tokens_LE * scale + gap * is_shown_LE, axis=1)
    centres_LE: NDArray[np.float64] = ends_LE - gap * is_shown_LE - tokens_LE * scale / 2
    return np.clip(centres_LE, 1e-3, 1 - 1e-3)


def _links(
    shown_AEE: NDArray[np.int64], box_LE: NDArray[np.int64], routers: Sequence[int], num_tokens: int
) -> dict[str, Any]:
    layers_R, sources_R, targets_R = np.nonzero(shown_AEE)
    values_R = shown_AEE[layers_R, sources_R, targets_R]
    ribbons = list(zip(*(places.tolist() for places in (layers_R, sources_R, targets_R, values_R)), strict=True))
    return {
        "source": box_LE[layers_R, sources_R].tolist(),
        "target": box_LE[layers_R + 1, targets_R].tolist(),
        "value": values_R.tolist(),
        "color": [_colour(routers[layer], routers, 0.4) for layer, *_ in ribbons],
        "customdata": [
            f"layer {layer}, expert {source} → layer {layer + 1}, expert {target}: {value / num_tokens:.2%} of tokens"
            for layer, source, target, value in ribbons
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
