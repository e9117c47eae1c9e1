"""Which figures of several reports stand side by side, and what a reader must know before comparing them.

Entropy, effective paths and distinct paths grow with the tokens that were counted, so they stand at a number of tokens
that all reports share: that of the reports where it is the same, else the highest of their rarefaction curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pathmoe_eval.reports.number_format import bits, count, percent, standard_error
from pathmoe_eval.reports.report import facts_of
from pathmoe_eval.reports.summary import SUMMARY_OF_SECTION, concentration_rows, interval_ends, rows_by_section
from pathmoe_eval.reports.summary_row import Ends, SummaryRow

Report = Mapping[str, Any]

MARK = "\N{DAGGER}"
"""Stands behind the name of a row whose figures were counted on different numbers of tokens."""

_LIKE_FOR_LIKE = ("max_length", "stride", "dtype", "data_hash", "sampling")

_NO_CURVE: Mapping[str, Any] = {"num_tokens": [], "entropy_bits": [], "num_paths": []}


def comparison_rows(reports: Mapping[str, Report]) -> dict[str, list[SummaryRow | None]]:
    """Figures by name, in the order of a report's summary, for each report; None where it lacks one.

    Raises:
        ValueError: entropies that no number of tokens makes comparable: see `shared_num_tokens`.
    """
    by_report = [rows_by_section(report["sections"]) for report in reports.values()]
    concentrations = concentrations_of(reports)
    if concentrations:
        shared = shared_num_tokens(concentrations)
        for rows, (name, report) in zip(by_report, reports.items(), strict=True):
            rows.pop("sketch", None)  # whose figures stand where the exact ones do
            if name in concentrations:
                ends = interval_ends(report["sections"])
                rows["concentration"] = _concentration_rows(concentrations[name], ends, shared)
    # Companions lead where they lead in one of the reports.
    places = sorted(range(len(by_report)), key=lambda place: not _leads_with_companions(list(reports.values())[place]))
    names = [
        name
        for section in SUMMARY_OF_SECTION
        for name in dict.fromkeys(row.name for place in places for row in by_report[place].get(section, []))
    ]
    found = [{row.name: row for rows in of_report.values() for row in rows} for of_report in by_report]
    return {name: [of_report.get(name) for of_report in found] for name in names}


def _leads_with_companions(report: Report) -> bool:
    consistency = report["sections"].get("consistency")
    return consistency is not None and consistency["leads_with"] == "companions"


def _concentration_rows(section: Mapping[str, Any], ends: Ends, num_tokens: int) -> list[SummaryRow]:
    """At some tokens; with intervals where these are all that were counted, since intervals are of those."""
    entropy_bits, num_paths = _points(section)[num_tokens]
    intervals = {}
    if num_tokens == section["whole"]["entropy"]["num_tokens"] and "rarefaction" in section["whole"]:
        intervals = {row.name: row.interval for row in concentration_rows(section, ends)}
    ceiling_bits = math.log2(num_tokens)
    share = percent(entropy_bits / ceiling_bits if ceiling_bits else None)
    entropy = section["whole"]["entropy"]
    bits_error = standard_error(entropy.get("entropy_standard_error_bits"))
    paths_error = standard_error(entropy.get("num_paths_standard_error"))
    values = {
        "Path entropy H, bits": (bits(entropy_bits), f"{share} of the ceiling, {bits(ceiling_bits)}{bits_error}"),
        "Effective paths, 2^H": (count(2**entropy_bits), f"at most {num_tokens:,}"),
        "Distinct paths": (count(num_paths), f"at most {num_tokens:,}{paths_error}"),
    }
    whole = section["whole"]
    null_bits = whole.get("independence", whole)["entropy_bits_null"]
    return [
        *(
            SummaryRow(f"{name}, at {num_tokens:,} tokens", value, beside, num_tokens, intervals.get(name, ""))
            for name, (value, beside) in values.items()
        ),
        SummaryRow(
            "H of independent layers, bits", bits(null_bits), "same loads, unlimited data", entropy["num_tokens"]
        ),
    ]


def unlike_runs(reports: Mapping[str, Report]) -> str | None:
    """A warning, in one line, that reports read otherwise or read something else; what one does not know of itself is
    not compared.

    Without it, figures are of the same tokens, read in the same windows by parameters of the same dtype; trees are
    sampled in the same way.
    """
    facts = {name: facts_of(report) for name, report in reports.items()}
    differing = []
    for key in _LIKE_FOR_LIKE:
        known = {name: of_report[key] for name, of_report in facts.items() if key in of_report}
        if len(set(known.values())) > 1:
            differing.append(f"{key} ({', '.join(f'{name}: {value}' for name, value in known.items())})")
    if not differing:
        return None
    return f"The reports differ in {'; '.join(differing)}: their figures do not compare like for like."


def is_of_unlike_samples(row: Sequence[SummaryRow | None]) -> bool:
    """Whether the figures of a row were counted on different numbers of tokens."""
    return len({figure.num_tokens for figure in row if figure is not None}) > 1


def comparison_notes(reports: Mapping[str, Report]) -> list[str]:
    """What a reader must know before comparing the columns."""
    notes = []
    runs = {name: facts_of(report) for name, report in reports.items()}
    hashes = [run.get("data_hash") for run in runs.values()]
    is_told = None not in hashes  # then `unlike_runs` says whether the texts differ
    if not is_told and len({(run["data"], run["num_tokens"]) for run in runs.values()}) > 1:
        read = "; ".join(f"{name}: {run['num_tokens']:,} tokens of {run['data']}" for name, run in runs.items())
        notes.append(f"The reports are of different texts, and perplexity compares on one text only. {read}.")
    concentrations = concentrations_of(reports)
    if len({section["whole"]["entropy"]["num_tokens"] for section in concentrations.values()}) > 1:
        notes.append(
            f"Paths were counted over different numbers of tokens; entropies and paths are those of random subsamples "
            f"of {shared_num_tokens(concentrations):,} tokens, in expectation (rarefaction, exact)."
        )
    sketched = [name for name, section in concentrations.items() if "rarefaction" not in section["whole"]]
    if sketched:
        notes.append(
            f"Paths of {', '.join(sketched)} were counted in fixed memory; their standard errors stand beside them."
        )
    naming = [name for name, report in reports.items() if _leads_with_companions(report)]
    if naming:
        notes.append(
            f"No two neighbouring layers share a router in {', '.join(naming)}: index figures (same index, Jaccard, "
            "keeping an index) are a matter of naming there; compare information and matched agreement."
        )
    return notes


def shared_num_tokens(concentrations: Mapping[str, Mapping[str, Any]]) -> int:
    """The highest number of tokens at which all reports know their entropy.

    It must be at least half of the tokens of the smallest report: a curve over the powers of two always has such a
    point, and less would leave most of what was counted out (our choice).

    A sketch knows the entropy of its own tokens alone.

    Args:
        concentrations: as `concentrations_of` gives them.

    Raises:
        ValueError: there is none.
    """
    tokens = {name: section["whole"]["entropy"]["num_tokens"] for name, section in concentrations.items()}
    shared = set.intersection(*(set(_points(section)) for section in concentrations.values()))
    smallest = min(tokens.values())
    best = max(shared, default=0)
    if 2 * best < smallest:
        counts = ", ".join(f"{number} tokens of {name}" for name, number in tokens.items())
        raise ValueError(
            f"reports ({counts}) must share a number of tokens to compare entropies; evaluate all of them with "
            f"--max_tokens {smallest}"
        )
    return best


def concentrations_of(reports: Mapping[str, Report]) -> dict[str, Any]:
    """The sections on concentration of those reports that have one: exact ones, else sketches."""
    found = sections_of(reports, "sketch") | sections_of(reports, "concentration")
    return {name: found[name] for name in reports if name in found}


def _points(section: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    """Entropy in bits and distinct paths of whole paths, by numbers of tokens."""
    whole = section["whole"]
    curve, entropy = whole.get("rarefaction", _NO_CURVE), whole["entropy"]
    of_curve = zip(curve["entropy_bits"], curve["num_paths"], strict=True)
    points = dict(zip(curve["num_tokens"], of_curve, strict=True))
    return points | {entropy["num_tokens"]: (entropy["entropy_bits"], entropy["num_paths"])}


def sections_of(reports: Mapping[str, Report], section: str) -> dict[str, Any]:
    """One section of the reports that have it."""
    return {name: report["sections"][section] for name, report in reports.items() if section in report["sections"]}
