"""Several reports side by side: one page, and one table in Markdown.

Entropy, effective paths and distinct paths grow with the tokens that were counted, so they stand at a number of tokens
that all reports share: that of the reports where it is the same, else the highest of their rarefaction curves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pathmoe.training.run_folder import write_text_atomically
from pathmoe_eval.figure_style import line_figure
from pathmoe_eval.number_format import UNDEFINED, bits, count, percent
from pathmoe_eval.page import Cell, Chapter, Panel, Table, Words, page_html, shown
from pathmoe_eval.path_figures import rarefaction_figure, zipf_figure
from pathmoe_eval.perturbation_figure import perturbation_figure
from pathmoe_eval.report import read_report
from pathmoe_eval.summary import SUMMARY_OF_SECTION, SummaryRow, rows_by_section

PAGE_FILE = "index.html"
TABLE_FILE = "comparison.md"

Report = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Reports side by side."""

    page: str
    """HTML, as self-contained as that of a report."""
    table: str
    """Markdown: a row for each figure, a column for each report."""


def compare_command(paths: Sequence[Path], out: Path) -> None:
    """Write the comparison of reports into a folder, and print its table.

    Args:
        paths: as for `read_reports`.
        out: the folder.

    Raises:
        ValueError: what `read_reports`, `compare` or `write_comparison` refuses.
    """
    comparison = compare(read_reports(paths))
    write_comparison(out, comparison)
    print(comparison.table)
    print(f"{out / PAGE_FILE}: {len(paths)} reports side by side; the table is in {out / TABLE_FILE}, too")


def read_reports(paths: Sequence[Path]) -> dict[str, Report]:
    """Reports by the names that a comparison calls them: of their models, or where those are the same their folders.

    Args:
        paths: of files `report.json`, or of the folders that they lie in.

    Raises:
        ValueError: fewer than two, one twice, or one that is no report.
    """
    files = [path / "report.json" if path.is_dir() else path for path in paths]
    if len(files) < 2 or len({file.resolve() for file in files}) < len(files):
        listed = " ".join(map(str, paths))
        raise ValueError(f"reports ({listed}) must be two or more, none of them twice; give others")
    reports = [read_report(file) for file in files]
    names = [str(report["run"]["model"]) for report in reports]
    if len(set(names)) < len(names):
        names = [str(file.parent) for file in files]
    return dict(zip(names, reports, strict=True))


def compare(reports: Mapping[str, Report]) -> Comparison:
    """Put reports side by side.

    Args:
        reports: by name, as `read_reports` gives them.

    Raises:
        ValueError: entropies that no number of tokens makes comparable.
    """
    rows = _rows(reports)
    notes = _notes(reports)
    table = Table(
        title="",
        head=["figure", *reports],
        rows=[[name, *(Words(_cell(row)) for row in of_reports)] for name, of_reports in rows.items()],
        reading="In brackets: chance, a bound or an interval; then the tokens.",
    )
    chapters = [
        Chapter(title="Side by side", notes=notes, parts=[table]),
        Chapter(title="Figures", notes=[], parts=_panels(reports)),
        Chapter(title="Reports", notes=[], parts=[_reports_table(reports)]),
    ]
    title = f"{len(reports)} models side by side"
    return Comparison(page=page_html(title, " · ".join(reports), chapters), table=_markdown(rows, reports, notes))


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write the page and the table, over those of an earlier comparison.

    Raises:
        ValueError: the folder is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out ({folder}) must be a folder, but is a file; choose another")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
    if names and names != {PAGE_FILE, TABLE_FILE}:
        found = min(names - {PAGE_FILE, TABLE_FILE}, default=PAGE_FILE)
        raise ValueError(f"--out ({folder}) must hold nothing but a comparison, but holds {found}; choose another")
    write_text_atomically(folder / TABLE_FILE, comparison.table)
    write_text_atomically(folder / PAGE_FILE, comparison.page)


def shared_num_tokens(concentrations: Mapping[str, Mapping[str, Any]]) -> int:
    """The highest number of tokens at which all reports know their entropy.

    It must be at least half of the tokens of the smallest report: a curve over the powers of two always has such a
    point, and less would leave most of what was counted out (our choice).

    Args:
        concentrations: name of each report and its section `concentration`.

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


def _points(section: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    """Entropy in bits and distinct paths of whole paths, by numbers of tokens."""
    whole = section["whole"]
    curve, entropy = whole["rarefaction"], whole["entropy"]
    of_curve = zip(curve["entropy_bits"], curve["num_paths"], strict=True)
    points = dict(zip(curve["num_tokens"], of_curve, strict=True))
    return points | {entropy["num_tokens"]: (entropy["entropy_bits"], entropy["num_paths"])}


def _rows(reports: Mapping[str, Report]) -> dict[str, list[SummaryRow | None]]:
    """Figures by name, in the order of a report's summary; None where a report lacks one."""
    by_report = [rows_by_section(report["sections"]) for report in reports.values()]
    concentrations = _sections(reports, "concentration")
    if concentrations:
        shared = shared_num_tokens(concentrations)
        for rows, report in zip(by_report, reports.values(), strict=True):
            if "concentration" in rows:
                rows["concentration"] = _concentration_rows(report["sections"]["concentration"], shared)
    # What leads in one report leads here.
    leading = sorted(by_report, key=lambda rows: _leads_with_indices(rows.get("consistency", [])))
    names = [
        name
        for section in SUMMARY_OF_SECTION
        for name in dict.fromkeys(row.name for rows in leading for row in rows.get(section, []))
    ]
    found = [{row.name: row for rows in of_report.values() for row in rows} for of_report in by_report]
    return {name: [of_report.get(name) for of_report in found] for name in names}


def _leads_with_indices(consistency: Sequence[SummaryRow]) -> bool:
    return not consistency or consistency[0].name.startswith("Same index")


def _concentration_rows(section: Mapping[str, Any], num_tokens: int) -> list[SummaryRow]:
    entropy_bits, num_paths = _points(section)[num_tokens]
    ceiling_bits = math.log2(num_tokens)
    share = percent(entropy_bits / ceiling_bits if ceiling_bits else None)
    values = {
        "Path entropy H, bits": (bits(entropy_bits), f"{share} of the ceiling, {bits(ceiling_bits)}"),
        "Effective paths, 2^H": (count(2**entropy_bits), f"at most {num_tokens:,}"),
        "Distinct paths": (count(num_paths), f"at most {num_tokens:,}"),
    }
    return [
        SummaryRow(f"{name}, at {num_tokens:,} tokens", value, beside, num_tokens)
        for name, (value, beside) in values.items()
    ]


def _notes(reports: Mapping[str, Report]) -> list[str]:
    """What a reader must know before comparing the columns."""
    notes = []
    runs = [report["run"] for report in reports.values()]
    if len({(run["data"], run["num_tokens"]) for run in runs}) > 1:
        read = "; ".join(f"{name}: {run['num_tokens']:,} tokens of {run['data']}" for name, run in _runs(reports))
        notes.append(f"The reports are of different texts, and perplexity compares on one text only. {read}.")
    concentrations = _sections(reports, "concentration")
    if len({section["whole"]["entropy"]["num_tokens"] for section in concentrations.values()}) > 1:
        notes.append(
            f"Paths were counted over different numbers of tokens; entropies and paths are those of random subsamples "
            f"of {shared_num_tokens(concentrations):,} tokens, in expectation (rarefaction, exact)."
        )
    naming = [name for name, section in _sections(reports, "consistency").items() if section["leads_with"] != "indices"]
    if naming:
        notes.append(
            f"Routers are independent in {', '.join(naming)}: index figures (same index, Jaccard, keeping an index) are "
            "a matter of naming there, and only information and matched agreement compare."
        )
    return notes


def _runs(reports: Mapping[str, Report]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, report["run"]) for name, report in reports.items()]


def _sections(reports: Mapping[str, Report], section: str) -> dict[str, Any]:
    """One section of the reports that have it."""
    return {name: report["sections"][section] for name, report in reports.items() if section in report["sections"]}


def _panels(reports: Mapping[str, Report]) -> list[Panel]:
    concentrations, consistencies = _sections(reports, "concentration"), _sections(reports, "consistency")
    perturbations = _sections(reports, "perturbation")
    panels = []
    if concentrations:
        whole = {name: section["whole"] for name, section in concentrations.items()}
        tokens = min(section["entropy"]["num_tokens"] for section in whole.values())
        panels += [
            Panel(
                title="Entropy over tokens",
                figure=rarefaction_figure({name: section["rarefaction"] for name, section in whole.items()}),
                reading="Compare curves one above the other, at equal numbers of tokens. Where they run along the "
                "ceiling they tell the size of the sample. The smallest sample has",
                num_tokens=tokens,
            ),
            Panel(
                title="Frequency over rank",
                figure=zipf_figure({name: section["rank_frequency"] for name, section in whole.items()}),
                reading="Tokens on the path of each rank; more tokens lift a curve. The smallest sample has",
                num_tokens=tokens,
            ),
        ]
    if consistencies:
        adjacent = {
            escape(name): section["information"]["adjacent_corrected_bits"] for name, section in consistencies.items()
        }
        pairs = max(map(len, adjacent.values()))
        labels = [f"{layer}-{layer + 1}" for layer in range(pairs)]
        panels.append(
            Panel(
                title="Information that neighbouring layers share",
                figure=line_figure(labels, adjacent, {}, "layers", "bits"),
                reading="Bias-corrected; 0 for independent layers, and free of names, so that it compares models of any "
                "sharing. The smallest sample has",
                num_tokens=min(section["num_tokens"] for section in consistencies.values()),
            )
        )
    if perturbations:
        panels.append(
            Panel(
                title="Perplexity under interventions",
                figure=perturbation_figure(perturbations),
                reading="Times the perplexity of the same model without. With one permutation for each router's block a "
                "shared router suffers less by construction: compare the permutation per layer. The smallest sample has",
                num_tokens=min(section["num_tokens"] for section in perturbations.values()),
                is_wide=True,
            )
        )
    return panels


def _reports_table(reports: Mapping[str, Report]) -> Table:
    rows: list[list[Cell]] = [
        [name, count(run["num_tokens"]), Words(str(run["data"])), Words(run["command"])] for name, run in _runs(reports)
    ]
    return Table(title="", head=["report", "tokens", "data", "command"], rows=rows)


def _cell(row: SummaryRow | None) -> str:
    return UNDEFINED if row is None else f"{row.value} ({row.beside}; {row.num_tokens:,})"


def _markdown(rows: Mapping[str, Sequence[SummaryRow | None]], reports: Mapping[str, Report], notes: list[str]) -> str:
    table = [["", *reports], ["---"] * (1 + len(reports))]
    table += [[name, *map(_cell, of_reports)] for name, of_reports in rows.items()]
    lines = ["| " + " | ".join(map(_in_markdown, line)) + " |" for line in table]
    reading = "In brackets: chance, a bound or an interval; then the tokens."
    return "\n\n".join([*map(_in_markdown, notes), "\n".join(lines), reading]) + "\n"


def _in_markdown(text: str) -> str:
    """Plain text as Markdown shows it as it is, HTML in it included."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", shown(text))
