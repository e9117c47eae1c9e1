"""Several reports side by side: one page, and one table in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import plotly.graph_objects as go

from pathmoe.training.run_folder import write_text_atomically
from pathmoe_eval.reports.comparison_rows import (
    MARK,
    Report,
    comparison_notes,
    comparison_rows,
    is_of_unlike_samples,
    sections_of,
    unlike_runs,
)
from pathmoe_eval.reports.figure_style import line_figure
from pathmoe_eval.reports.markdown import in_markdown
from pathmoe_eval.reports.number_format import UNDEFINED, count
from pathmoe_eval.reports.page import Cell, Chapter, Panel, Table, Words, page_html
from pathmoe_eval.reports.path_figures import rarefaction_figure, zipf_figure
from pathmoe_eval.reports.perturbation_figure import perturbation_figure
from pathmoe_eval.reports.report import read_report
from pathmoe_eval.reports.summary_row import SummaryRow

PAGE_FILE = "index.html"
TABLE_FILE = "comparison.md"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Reports side by side."""

    page: str
    """HTML, as self-contained as that of a report."""
    table: str
    """Markdown: a row for each figure, a column for each report."""
    warnings: tuple[str, ...] = ()
    """What keeps figures from comparing like for like, each in one line; the page and the table say it, too."""


def compare_command(paths: Sequence[Path], out: Path, command: str) -> None:
    """Write the comparison of reports into a folder, and print its table.

    Args:
        paths: as for `read_reports`.
        out: the folder.
        command: the command line, for the page.

    Raises:
        ValueError: what `read_reports`, `compare` or `write_comparison` refuses.
    """
    comparison = compare(read_reports(paths), command)
    write_comparison(out, comparison)
    for warning in comparison.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    print(comparison.table)
    print(f"{out / PAGE_FILE}: {len(paths)} reports side by side; the table is in {out / TABLE_FILE}, too")


def read_reports(paths: Sequence[Path]) -> dict[str, Report]:
    """Reports by the names that a comparison calls them: of their models, else of their folders or files.

    Args:
        paths: of files `report.json`, or of the folders that they lie in.

    Raises:
        ValueError: fewer than two, one twice, or one that is no report.
    """
    files = [path / "report.json" if path.is_dir() else path for path in paths]
    if len(files) < 2:
        raise ValueError(
            f"reports ({' '.join(map(str, paths)) or 'none'}) must be two or more; give another one to compare with"
        )
    places = [file.resolve() for file in files]
    if again := next((path for path, place in zip(paths, places, strict=True) if places.count(place) > 1), None):
        raise ValueError(f"reports ({again}) must each be given once, but this one is given twice; give another one")
    reports = [read_report(file) for file in files]
    models = [str(report["run"]["model"]) for report in reports]
    names = [models, [str(file.parent) for file in files], [str(file) for file in files]]
    return dict(zip(next(some for some in names if len(set(some)) == len(some)), reports, strict=True))


def compare(reports: Mapping[str, Report], command: str) -> Comparison:
    """Put reports side by side.

    Args:
        reports: by name, as `read_reports` gives them.
        command: what made the comparison, for the page.

    Raises:
        ValueError: entropies that no number of tokens makes comparable.
    """
    rows = {
        f"{name} {MARK}" if is_of_unlike_samples(row) else name: row for name, row in comparison_rows(reports).items()
    }
    warnings = _warnings(reports, rows)
    notes = [*warnings, *comparison_notes(reports)]
    table = Table(
        title="",
        head=["figure", *reports],
        rows=[[name, *map(_cell, of_reports)] for name, of_reports in rows.items()],
        reading="Below each figure: its interval, over documents or forks, chance or a bound, and the sample.",
    )
    chapters = [
        Chapter(title="Side by side", notes=notes, parts=[table]),
        Chapter(title="Figures", notes=[], parts=_panels(reports)),
        Chapter(title="How this was made", notes=[command], parts=[_reports_table(reports)]),
    ]
    title = f"{len(reports)} models side by side"
    page, markdown = page_html(title, " · ".join(reports), chapters), _markdown(rows, reports, notes)
    return Comparison(page=page, table=markdown, warnings=tuple(warnings))


def _warnings(reports: Mapping[str, Report], rows: Mapping[str, Sequence[SummaryRow | None]]) -> list[str]:
    num_unlike = sum(map(is_of_unlike_samples, rows.values()))
    unlike_samples = (
        f"Rows marked {MARK} ({num_unlike} of {len(rows)}) were counted on different numbers of tokens: what differs "
        "there may be the sample and not the model."
    )
    return [*filter(None, [unlike_runs(reports)]), *([unlike_samples] if num_unlike else [])]


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write the page and the table, over those of an earlier comparison.

    Raises:
        ValueError: the folder is a file, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out ({folder}) must be a folder, but is a file; choose another")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
    if names - {PAGE_FILE, TABLE_FILE} or names == {PAGE_FILE}:
        found = min(names - {PAGE_FILE, TABLE_FILE}, default=PAGE_FILE)
        raise ValueError(f"--out ({folder}) must hold nothing but a comparison, but holds {found}; choose another")
    write_text_atomically(folder / TABLE_FILE, comparison.table)
    write_text_atomically(folder / PAGE_FILE, comparison.page)


def _panels(reports: Mapping[str, Report]) -> list[Panel]:
    concentrations, consistencies = sections_of(reports, "concentration"), sections_of(reports, "consistency")
    perturbations = sections_of(reports, "perturbation")
    panels = []
    if concentrations:
        whole = {name: section["whole"] for name, section in concentrations.items()}
        tokens = min(section["entropy"]["num_tokens"] for section in whole.values())
        panels += [
            Panel(
                title="Entropy over tokens",
                figure=_coloured(
                    rarefaction_figure({name: section["rarefaction"] for name, section in whole.items()}),
                    reports,
                    whole,
                ),
                reading="Compare curves one above the other, at equal numbers of tokens. Where they run along the "
                "ceiling they tell the size of the sample. The smallest sample has",
                num_tokens=tokens,
            ),
            Panel(
                title="Frequency over rank",
                figure=_coloured(
                    zipf_figure({name: section["rank_frequency"] for name, section in whole.items()}), reports, whole
                ),
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
                figure=_coloured(line_figure(labels, adjacent, {}, "layers", "bits"), reports, consistencies),
                reading="Bias-corrected; 0 for independent layers, and free of names, so that models of any sharing "
                "compare. The smallest sample has",
                num_tokens=min(section["num_tokens"] for section in consistencies.values()),
            )
        )
    if perturbations:
        panels.append(
            Panel(
                title="Perplexity under interventions",
                figure=_coloured(perturbation_figure(perturbations), reports, perturbations),
                reading="Times the perplexity of the same model without. One permutation for each block leaves the "
                "agreement of layers that share a router whole: compare models by that per layer. The smallest sample "
                "has",
                num_tokens=min(section["num_tokens"] for section in perturbations.values()),
                is_wide=True,
            )
        )
    return panels


def _coloured(figure: go.Figure, reports: Mapping[str, Report], shown_reports: Iterable[str]) -> go.Figure:
    """Give each report the colour of its place among all, so that it has the same in figures that lack others."""
    places = {name: place for place, name in enumerate(reports)}
    return figure.update_layout(meta={"series": [places[name] for name in shown_reports]})


def _reports_table(reports: Mapping[str, Report]) -> Table:
    runs = {name: report["run"] for name, report in reports.items()}
    rows: list[list[Cell]] = [
        [name, count(run["num_tokens"]), Words(str(run["data"])), Words(run["command"])] for name, run in runs.items()
    ]
    return Table(title="", head=["report", "tokens", "data", "command"], rows=rows)


def _cell(row: SummaryRow | None) -> Words:
    return Words(UNDEFINED) if row is None else Words(row.value, f"{row.context}; {row.num_tokens:,} {row.unit}")


def _markdown(rows: Mapping[str, Sequence[SummaryRow | None]], reports: Mapping[str, Report], notes: list[str]) -> str:
    table = Table(
        title="",
        head=["", *reports],
        rows=[[name, *map(_cell, of_reports)] for name, of_reports in rows.items()],
        reading="In brackets: the interval, over documents or forks, chance or a bound, and the sample.",
    )
    return "\n\n".join([*map(in_markdown, notes), in_markdown(table)]) + "\n"
