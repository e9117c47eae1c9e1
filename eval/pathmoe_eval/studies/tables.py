"""The tables of a study, for its page and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pathmoe_eval.reports.number_format import UNDEFINED, count
from pathmoe_eval.reports.page import Cell, Number, Table
from pathmoe_eval.studies.comparison import Measured, VariantComparison
from pathmoe_eval.studies.figure import Figure
from pathmoe_eval.studies.figures import FIGURES, PRIMARY
from pathmoe_eval.studies.matching import Sizes
from pathmoe_eval.studies.statistics import ALPHA, POWER, Ends

_UNTESTED = tuple(figure for figure in FIGURES if figure.key not in (PRIMARY, "perturbed_tokens"))

# Title of a table and where its figures are from.
_GROUPS = {
    "Paths": ("concentration", "separation"),
    "Layers": ("consistency",),
    "Load and training": ("load", "training"),
    "Robustness": ("perturbation",),
    "Geometry: directions and pairs": ("directions", "pairs"),
    "Geometry: probes of control and content": ("probes",),
    "Geometry: from layer to layer": ("steps",),
    "Cost": ("summary",),
}


def ranking_table(compared: Sequence[VariantComparison], baseline: str) -> Table:
    """Quality of every variant, mean over seeds, the fewest bits per byte first."""
    primary, perplexity = (next(one for one in FIGURES if one.key == key) for key in (PRIMARY, "perplexity"))
    rows: list[list[Cell]] = [
        [
            one.name,
            _mean(primary, one),
            _difference(one.figures[PRIMARY], one.name == baseline),
            "" if one.name == baseline else p_text(one.corrected_p),
            str(len(one.figures[PRIMARY].by_seed)),
            _mean(perplexity, one),
        ]
        for one in compared
    ]
    return Table(
        title="",
        head=["variant", primary.name, f"less {baseline}", "p, Holm", "seeds", perplexity.name],
        rows=rows,
        reading="Means over seeds, of perplexity the geometric one; below them 95% t intervals over seeds. The "
        "difference is that of bits per byte over the seeds that both have; p is that of a paired t test over them, "
        "two-sided, corrected after Holm for all pairs that the study compares.",
    )


def figure_tables(compared: Sequence[VariantComparison], sizes: Mapping[str, Sizes]) -> list[Table]:
    """The other figures of every variant, means over seeds, in the order of the ranking."""
    tables = []
    for title, sections in _GROUPS.items():
        figures = [
            figure
            for figure in FIGURES
            if figure.place.split(".")[0] in sections and any(figure.key in one.figures for one in compared)
        ]
        is_cost = title == "Cost"
        rows: list[list[Cell]] = [
            [one.name, *(_mean(figure, one) for figure in figures), *(size_cells(sizes[one.name]) if is_cost else [])]
            for one in compared
        ]
        notes = [f"{figure.name}: {figure.note}" for figure in figures if figure.note]
        head = ["variant", *(figure.name for figure in figures), *(SIZES if is_cost else [])]
        tables.append(Table(title=title, head=head, rows=rows, reading=_sentence("; ".join(notes))))
    return [table for table in tables if len(table.head) > 1]


SIZES = ("parameters", "active", "routers", "FLOPs a token")
"""Heads of the columns of `size_cells`."""


def size_cells(sizes: Sizes) -> list[Cell]:
    """Parameters and FLOPs of a variant."""
    return [
        count(number) for number in (sizes.parameters, sizes.active_parameters, sizes.router_parameters, sizes.flops)
    ]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


MEANS = (
    "Means over seeds, of rises of perplexity the geometric ones; below them 95% t intervals over seeds, which know "
    "nothing of the bounds of shares and counts."
)
"""Above `figure_tables`."""

PAIRED = (
    "Seed by seed; below 0 is better. Intervals are of 95%; those of the bootstrap are percentiles, too narrow for few "
    "seeds, so that the t interval leads. The effect is Cohen's d_z of the pairs with Hedges' correction. p is that of "
    "the paired t test, two-sided. Detectable is the true difference that this test would have found with a "
    f"probability of {POWER:.0%} at the level {ALPHA}, before any correction, if the deviation of the pairs is the one "
    "observed; smaller ones it finds less often, and with the correction all of them."
)
"""Above `paired_table`."""

DIFFERENCES = (
    "Mean differences over the seeds that both have, with their 95% t intervals, in the units of the figure, shares as "
    "fractions; of perplexities and of their rises how many times as high. These are not tested, and their intervals "
    "not corrected for their number."
)
"""Above `differences_table`."""


def paired_table(compared: Sequence[VariantComparison], baseline: str) -> Table:
    """What the seeds say of each difference in bits per byte."""
    rows = []
    for one in compared:
        difference = one.figures[PRIMARY].difference
        if difference is None:
            continue
        rows.append(
            [
                one.name,
                str(difference.num_seeds),
                f"{difference.mean:+z.4f}",
                _ends(difference.t_interval),
                _ends(difference.bootstrap_interval),
                _ends(one.documents_interval),
                UNDEFINED if difference.effect_size is None else f"{difference.effect_size:+z.2f}",
                p_text(difference.p_value),
                p_text(one.corrected_p),
                UNDEFINED if difference.detectable is None else f"{difference.detectable:.4f}",
            ]
        )
    return Table(
        title=f"Bits per byte less those of {baseline}",
        head=[
            "variant", "seeds", "difference", "t interval", "bootstrap of seeds", "of seeds and documents", "effect",
            "p", "p, Holm", "detectable",
        ],
        rows=rows,
    )  # fmt: skip


def differences_table(compared: Sequence[VariantComparison], baseline: str) -> Table:
    """How the other figures differ from the baseline's: intervals, no tests."""
    others = [one for one in compared if one.name != baseline]
    rows: list[list[Cell]] = [
        [figure.name, *(_plain_difference(figure, one.figures.get(figure.key)) for one in others)]
        for figure in _UNTESTED
        if any(_differs(one.figures.get(figure.key)) for one in others)
    ]
    return Table(title=f"Less those of {baseline}", head=["figure", *(one.name for one in others)], rows=rows)


def p_text(value: float | None) -> str:
    """A p value: three decimals, below a thousandth so."""
    if value is None:
        return UNDEFINED
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _mean(figure: Figure, one: VariantComparison) -> Cell:
    if figure.key not in one.figures:
        return UNDEFINED
    measured, form = one.figures[figure.key], figure.form
    varies = len(set(measured.by_seed.values())) > 1
    beside = [" to ".join(map(form, measured.interval))] if measured.interval is not None and varies else []
    if len(measured.by_seed) < len(one.figures[PRIMARY].by_seed):
        beside.append(f"of {len(measured.by_seed)} seeds")
    return _with_aside(form(measured.mean), ", ".join(beside))


def _with_aside(text: str, aside: str) -> Cell:
    return Number(text, aside) if aside else text


def _difference(measured: Measured, is_baseline: bool) -> str:
    if is_baseline:
        return ""
    return UNDEFINED if measured.difference is None else f"{measured.difference.mean:+z.4f}"


def _differs(measured: Measured | None) -> bool:
    return measured is not None and measured.difference is not None


def _plain_difference(figure: Figure, measured: Measured | None) -> Cell:
    if measured is None or measured.difference is None:
        return UNDEFINED

    def form(value: float) -> str:
        return f"{value:+z.4g}" if figure.factor is None else f"{math.exp(value):.4g}"

    mean, ends = measured.difference.mean, measured.difference.t_interval
    times = "" if figure.factor is None else " times"
    return _with_aside(form(mean) + times, "" if ends is None else " to ".join(map(form, ends)))


def _ends(ends: Ends | None) -> str:
    return UNDEFINED if ends is None else f"{ends[0]:+z.4f} to {ends[1]:+z.4f}"
