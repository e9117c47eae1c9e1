"""Chapters of a report on what was predicted: perplexity by domain, and under interventions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathmoe_eval.reports.number_format import UNDEFINED, count, interval, percent, ratio
from pathmoe_eval.reports.page import Chapter, Panel, Table
from pathmoe_eval.reports.perturbation_figure import perturbation_figure
from pathmoe_eval.reports.summary import perturbed_name

Section = Mapping[str, Any]


def perplexity_chapter(section: Section) -> Chapter:
    """Of `PerplexityResult` as a dict."""
    domains = section["by_domain"]
    named = [("all", section["total"]), *((domain["domain"], domain) for domain in domains if len(domains) > 1)]
    rows = [
        [
            name,
            ratio(one["perplexity"]),
            interval(one["perplexity_interval"]),
            ratio(one["bits_per_byte"]),
            interval(one["bits_per_byte_interval"]),
            count(one["num_documents"]),
            count(one["num_tokens"]),
        ]
        for name, one in named
    ]
    level = f"{section['confidence']:.0%} interval"
    return Chapter(
        title="Perplexity",
        notes=[],
        parts=[
            Table(
                title="",
                head=["domain", "perplexity", level, "bits per byte", level, "documents", "tokens"],
                rows=rows,
                reading=f"Intervals are of {section['num_resamples']:,} bootstrap samples of documents: they hold for "
                "the draw of documents, not of the training, and are too narrow for fewer than about twenty.",
            )
        ],
    )


def perturbation_chapter(section: Section) -> Chapter:
    """Of `Robustness` as a dict."""
    rows = [
        [
            perturbed_name(one),
            ratio(one["perplexity"]),
            _signed(one["rise_percent"]),
            UNDEFINED
            if one["rise_percent_interval"] is None
            else " to ".join(map(_signed, one["rise_percent_interval"])),
            UNDEFINED if one["rise_percent_seed_std"] is None else f"{one['rise_percent_seed_std']:,.1f}",
            count(one["num_seeds"]),
            "all" if one["listed_share"] == 1 else percent(one["listed_share"]),
        ]
        for one in section["perturbed"]
    ]
    notes = [] if section["permutations"] is None else [section["permutations"]["reason"]]
    if any(one["listed_share"] is not None for one in section["perturbed"]):
        notes.append(_listed_from(section.get("paths_from")))
    return Chapter(
        title="Perturbations",
        notes=notes,
        parts=[
            Panel(
                title="Perplexity under interventions",
                figure=perturbation_figure({"": section}),
                reading=f"Times the free model's perplexity, {ratio(section['free_perplexity'])} (dotted). Bars are "
                f"{section['confidence']:.0%} intervals over {section['num_documents']:,} documents.",
                num_tokens=section["num_tokens"],
                is_wide=True,
            ),
            Table(
                title="",
                head=[
                    "intervention",
                    "perplexity",
                    "rise",
                    f"{section['confidence']:.0%} interval, documents",
                    "deviation over seeds, points",
                    "seeds",
                    "tokens on listed paths",
                ],
                rows=rows,
                reading=f"Of {section['num_tokens']:,} scored tokens; the free model has a perplexity of "
                f"{ratio(section['free_perplexity'])}.",
            ),
        ],
    )


def _listed_from(trace: str | None) -> str:
    nothing = "A list that all tokens are on changes nothing but the context that windows repeat."
    if trace is not None:
        return f"Paths are listed from the trace {trace}. {nothing}"
    return (
        "Paths are listed from the scored documents themselves, of which a list knows more than of other text; for one "
        f"of other text see --paths_from. {nothing}"
    )


def _signed(rise_percent: float | None) -> str:
    return UNDEFINED if rise_percent is None else f"{rise_percent:+z,.1f}%"
