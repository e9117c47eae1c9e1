"""The chapter of a study on the course of training: validation loss, paths and the geometry of routers over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pathmoe_eval.reports.number_format import count, ratio
from pathmoe_eval.reports.page import Cell, Chapter, Number, Panel, Table
from pathmoe_eval.studies.charts import curves_figure
from pathmoe_eval.studies.run_result import RunResult

Curves = Mapping[str, Sequence[Mapping[int, float]]]
"""Of each variant those of its runs: a figure by training tokens."""

# Of what `monitor` gives: title, unit, and what it is.
_MONITORED = {
    "entropy_bits": ("Path entropy", "bits", "Of the paths of all tokens of a slice of the validation split."),
    "load_entropy": ("Load entropy", "share of log2 of the experts", "Of the tokens per expert, mean over layers."),
    "adjacent_mutual_information_bits": (
        "Information between adjacent layers",
        "bits",
        "What a layer's expert tells of the next layer's, mean over pairs, corrected for the sample's size.",
    ),
    "shared_state_energy": (
        "Shared direction of states",
        "share of the energy of router inputs",
        "Along their first right singular vector, uncentred, mean over layers with a router of their own.",
    ),
    "shared_logit_energy": (
        "Shared direction in logits",
        "share of the energy of centred logits",
        "What the direction that router inputs share gives of the logits, less what is common to all experts; mean "
        "over layers with a router of their own.",
    ),
    "alignment": (
        "Alignment of routers",
        "times that of a random router",
        "Energy of the logits over that of a random router of the same norm; mean over layers with a router of their "
        "own.",
    ),
}

_MOST_POINTS = 6
"""Columns of a table."""


def training_chapter(results: Sequence[RunResult], order: Sequence[str]) -> Chapter:
    """Figures over training tokens, and tables of those that were monitored.

    Args:
        results: of the runs that are finished; those without logs are left out.
        order: names of all variants, by which colours are given.
    """
    parts: list[Panel | Table] = []
    losses = _of_variants(order, [(result.variant, result.curve) for result in results])
    tables = []
    if losses:
        what = "Loss on the validation split."
        parts.append(_panel("Learning curves", losses, order, "validation loss, nats a token", what))
        tables.append(curves_table("Validation loss, nats a token", losses, what))
    for name, (title, unit, what) in _MONITORED.items():
        curves = _of_variants(order, [(result.variant, result.monitored.get(name, {})) for result in results])
        if curves:
            parts.append(_panel(title, curves, order, unit, what))
            tables.append(curves_table(f"{title}, {unit}", curves, what))
    return Chapter(title="Over training", notes=[], parts=[*parts, *tables])


def _of_variants(order: Sequence[str], curves: Sequence[tuple[str, Mapping[int, float]]]) -> Curves:
    """Curves by variant, of the variants whose runs have a point in common."""
    by_variant = {name: [curve for variant, curve in curves if variant == name and curve] for name in order}
    return {name: of_runs for name, of_runs in by_variant.items() if of_runs and set.intersection(*map(set, of_runs))}


def _panel(title: str, curves: Curves, order: Sequence[str], axis: str, what: str) -> Panel:
    return Panel(
        title=title,
        figure=curves_figure(curves, order, axis),
        reading=f"{what} The mean over seeds, and a band that spans them, over",
        num_tokens=max(max(curve) for of_runs in curves.values() for curve in of_runs),
        unit="training tokens",
    )


def curves_table(title: str, curves: Curves, what: str) -> Table:
    """Means over seeds, with their range, at a few points of the training that all have in common."""
    common = sorted(set.intersection(*(set(curve) for of_runs in curves.values() for curve in of_runs)))
    # From the first to the last, so many as there are or as fit.
    number = min(_MOST_POINTS, len(common))
    tokens = [common[(len(common) - 1) * place // max(number - 1, 1)] for place in range(number)]
    rows: list[list[Cell]] = [
        [name, *(_mean_and_range([curve[at] for curve in of_runs]) for at in tokens)]
        for name, of_runs in curves.items()
    ]
    return Table(
        title=title,
        head=["variant", *(f"{count(at)} tokens" for at in tokens)],
        rows=rows,
        reading=f"{what} Means over seeds, and from the lowest to the highest of them.",
    )


def _mean_and_range(values: Sequence[float]) -> Cell:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return ratio(mean)
    return Number(ratio(mean), f"{ratio(min(values))} to {ratio(max(values))}")
