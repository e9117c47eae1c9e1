"""The report of a study: a page, Markdown for an appendix, a CSV of its runs, and every number."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathmoe.training.run_folder import write_text_atomically
from pathmoe_eval.reports.markdown import in_markdown
from pathmoe_eval.reports.number_format import ratio
from pathmoe_eval.reports.page import Cell, Chapter, Panel, Table, Words, page_html
from pathmoe_eval.studies.charts import pareto_figure, seeds_figure
from pathmoe_eval.studies.comparison import VariantComparison
from pathmoe_eval.studies.figures import FIGURES, PRIMARY
from pathmoe_eval.studies.picture import picture
from pathmoe_eval.studies.plan import PlannedVariant
from pathmoe_eval.studies.run_result import RunResult
from pathmoe_eval.studies.runs import StudyRun
from pathmoe_eval.studies.study import Study
from pathmoe_eval.studies.tables import (
    DIFFERENCES,
    MEANS,
    PAIRED,
    SIZES,
    differences_table,
    figure_tables,
    p_text,
    paired_table,
    ranking_table,
    size_cells,
)
from pathmoe_eval.studies.training_curves import training_chapter

PAGE_FILE, MARKDOWN_FILE, CSV_FILE, NUMBERS_FILE = "index.html", "report.md", "runs.csv", "study.json"
PICTURE_FILE = "picture.svg"

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """A study with what came of it so far."""

    study: Study
    variants: Sequence[PlannedVariant]
    runs: Sequence[StudyRun]
    results: Sequence[RunResult]
    states: Mapping[str, str]
    """How far each run has come, by key, with the error that it has ended with."""
    command: str
    created: str


Compared = Mapping[str, Sequence[VariantComparison]]
"""By baseline, as `compare_variants` gives them."""


def write_study_report(folder: Path, report: StudyReport, compared: Compared) -> None:
    """Write page, Markdown, CSV, numbers and, with a run, a picture, each whole, over those of an earlier report.

    Args:
        folder: made if it is not there.
        report: the study and its runs.
        compared: what `compare_variants` makes of its results.
    """
    ranked = compared[report.study.baseline]
    write_text_atomically(folder / NUMBERS_FILE, json.dumps(_numbers(report, compared), indent=1) + "\n")
    write_text_atomically(folder / CSV_FILE, _csv(report))
    write_text_atomically(folder / MARKDOWN_FILE, markdown(report, compared))
    write_text_atomically(folder / PAGE_FILE, page(report, compared))
    (folder / PICTURE_FILE).unlink(missing_ok=True)
    if ranked:
        write_text_atomically(folder / PICTURE_FILE, picture(f"Study {report.study.name}", _subtitle(report), ranked))


def page(report: StudyReport, compared: Compared) -> str:
    """The page as text."""
    study = report.study
    return page_html(f"Study {study.name}", _subtitle(report), _chapters(report, compared))


def markdown(report: StudyReport, compared: Compared) -> str:
    """The same in Markdown, without pictures."""
    parts = [f"# Study {report.study.name}", _subtitle(report)]
    for chapter in _chapters(report, compared):
        tables = [part for part in chapter.parts if isinstance(part, Table)]
        if chapter.notes or tables:
            parts += [f"## {chapter.title}", *map(in_markdown, chapter.notes), *map(in_markdown, tables)]
    return "\n\n".join(parts) + "\n"


def _subtitle(report: StudyReport) -> str:
    study = report.study
    # Steps of different sizes can't all end at the same token.
    tokens = sorted({variant.steps * variant.tokens_per_step for variant in report.variants})
    least_to_most = " to ".join(f"{number:,}" for number in dict.fromkeys((tokens[0], tokens[-1])))
    return (
        f"{len(study.variants)} variants x {len(study.seeds)} seeds · {least_to_most} training "
        f"tokens each · compared with {' and '.join(study.baselines)} · {len(report.results)} of {len(report.runs)} "
        "runs finished"
    )


def _chapters(report: StudyReport, compared: Compared) -> list[Chapter]:
    baseline = report.study.baseline
    ranked = compared[baseline]
    sizes = {variant.name: variant.sizes for variant in report.variants}
    ranking = [ranking_table(ranked, baseline)] if ranked else []
    others = figure_tables(ranked, sizes) if ranked else []
    tests = [table for one in report.study.baselines if (table := paired_table(compared[one], one)).rows]
    differences = [table for one in report.study.baselines if (table := differences_table(compared[one], one)).rows]
    return [
        Chapter(title="Ranking", notes=_notes(report), parts=ranking),
        Chapter(title="Figures", notes=[], parts=_panels(report, ranked) if ranked else []),
        training_chapter(report.results, list(report.study.variants)),
        Chapter(title="Differences in bits per byte", notes=[PAIRED] if tests else [], parts=tests),
        Chapter(title="Paths, load and cost", notes=[MEANS] if others else [], parts=others),
        Chapter(title="Their differences", notes=[DIFFERENCES] if differences else [], parts=differences),
        Chapter(title="Variants", notes=[], parts=[_variants_table(report)]),
        Chapter(title="Runs", notes=_circumstances(report), parts=[_runs_table(report)]),
        Chapter(title="How this was made", notes=[report.command, report.created], parts=[]),
    ]


def _notes(report: StudyReport) -> list[str]:
    """What a reader must know first."""
    notes = []
    missing = [run for run in report.runs if not any(_is_of(result, run) for result in report.results)]
    if missing:
        listed = "; ".join(f"{run.name}: {report.states[run.key]}" for run in missing)
        notes.append(f"Not finished, {len(missing)} of {len(report.runs)} runs: {listed}.")
    if len({result.data_hash for result in report.results}) > 1:
        notes.append("Runs were evaluated on different documents, so that their figures do not compare like for like.")
    if report.results:
        tokens, documents = report.results[0].num_tokens, len(report.results[0].nats_M)
        notes.append(f"Evaluated on {tokens:,} tokens of {documents:,} documents that were held out.")
    seeds = {frozenset(one.seed for one in report.results if one.variant == name) for name in report.study.variants}
    if len(seeds - {frozenset()}) > 1:
        notes.append(
            "Variants have different seeds so far, so that their means, and with them the order, are of different "
            "draws; differences are of the seeds that both have."
        )
    if report.results and not all(result.curve for result in report.results):
        notes.append("Runs without Lightning's CSVLogger have no learning curve and no roughness.")
    if len({variant.tokens_per_step for variant in report.variants}) > 1:
        notes.append("Steps are of different numbers of tokens, so that the roughness of variants does not compare.")
    if len(report.study.seeds) < 3:
        notes.append("With fewer than three seeds intervals are so wide that hardly anything can be told.")
    return notes


def _is_of(result: RunResult, run: StudyRun) -> bool:
    return (result.variant, result.seed) == (run.variant.name, run.seed)


def _panels(report: StudyReport, compared: Sequence[VariantComparison]) -> list[Panel]:
    order = list(report.study.variants)
    tokens = report.results[0].num_tokens
    panels = [
        Panel(
            title="Bits per byte by seed",
            figure=seeds_figure(compared, order),
            reading="Each run a circle; the diamond is the mean, with its 95% t interval over seeds. Variants of one "
            "seed saw the same batches, so that pairs tell more than these intervals: see below. Evaluated on",
            num_tokens=tokens,
        )
    ]
    if any("seconds" in one.figures for one in compared):
        panels.append(
            Panel(
                title="Quality over training time",
                figure=pareto_figure(compared, order),
                reading="Large: means; small: runs. Lower and further left is better. Times are those of the machine "
                "and of what else ran on it. Evaluated on",
                num_tokens=tokens,
            )
        )
    return panels


def _variants_table(report: StudyReport) -> Table:
    rows: list[list[Cell]] = []
    for variant in report.variants:
        of_study = report.study.variants[variant.name]
        settings = [*of_study.configs, *(f"{key} {value}" for key, value in of_study.overrides.items())]
        rows.append(
            [variant.name, Words(", ".join(settings) or "the base"), Words(variant.matched), *size_cells(variant.sizes)]
        )
    head = ["variant", "adds", "matched by", *SIZES]
    base = ", ".join([*report.study.base, *(f"{key} {value}" for key, value in report.study.overrides.items())])
    return Table(title="", head=head, rows=rows, reading=f"Base: {base}.")


def _runs_table(report: StudyReport) -> Table:
    quality = {(one.variant, one.seed): one.figures.get(PRIMARY) for one in report.results}
    rows: list[list[Cell]] = [
        [
            run.variant.name,
            str(run.seed),
            ratio(quality.get((run.variant.name, run.seed))),
            Words(report.states[run.key]),
            Words(str(run.folder)),
        ]
        for run in report.runs
    ]
    return Table(title="", head=["variant", "seed", "bits per byte", "state", "folder"], rows=rows)


def _circumstances(report: StudyReport) -> list[str]:
    """Commits, versions and threads of the runs, of which there should be one each, and what they were trained on."""
    notes = []
    for key in ("commit", "evaluation commit", "torch", "python", "threads", "device"):
        found = sorted({value for result in report.results for value in result.circumstances.get(key, [])})
        if found:
            warning = ": runs differ in it, which may be what differs between them" if len(found) > 1 else ""
            notes.append(f"{key}: {', '.join(found)}{warning}")
    data = sorted({_data(result.data) for result in report.results if result.data})
    return [". ".join(notes) + "."] * bool(notes) + [f"Trained on {one}." for one in data]


def _data(data: Mapping[str, Any]) -> str:
    """What a run was trained on, in words."""
    train, validation = (data.get(split) or {} for split in ("train", "validation"))
    size = f", {train['targets']:,} targets to train on" if train else ""
    hashes = [str(split.get("content_sha256", ""))[:12] for split in (train, validation)]
    return (
        f"{data['source']}{size}, {validation['documents']:,} documents held out; SHA-256 of both: "
        f"{' and '.join(filter(None, hashes))}"
    )


def _numbers(report: StudyReport, compared: Compared) -> dict[str, Any]:
    results = {(result.variant, result.seed): result for result in report.results}
    runs = []
    for run in report.runs:
        result = results.get((run.variant.name, run.seed))
        runs.append(
            {
                "variant": run.variant.name,
                "seed": run.seed,
                "key": run.key,
                "folder": str(run.folder),
                "state": report.states[run.key],
                "figures": {} if result is None else result.figures,
                "curve": [] if result is None else _points(result.curve),
                "monitored": {} if result is None else {key: _points(one) for key, one in result.monitored.items()},
            }
        )
    return {
        "format": FORMAT,
        "command": report.command,
        "created": report.created,
        "study": asdict(report.study),
        "variants": [
            {"name": one.name, "arguments": list(one.arguments), "matched": one.matched, **asdict(one.sizes)}
            for one in report.variants
        ],
        "runs": runs,
        "comparison": {baseline: [asdict(one) for one in of_one] for baseline, of_one in compared.items()},
    }


def _points(curve: Mapping[int, float]) -> list[list[float]]:
    return [[tokens, value] for tokens, value in curve.items()]


def _csv(report: StudyReport) -> str:
    results = {(result.variant, result.seed): result for result in report.results}
    keys = [figure.key for figure in FIGURES if any(figure.key in result.figures for result in report.results)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["variant", "seed", "state", "folder", *keys])
    for run in report.runs:
        result = results.get((run.variant.name, run.seed))
        figures = {} if result is None else result.figures
        writer.writerow(
            [run.variant.name, run.seed, report.states[run.key], run.folder, *(figures.get(key, "") for key in keys)]
        )
    return stream.getvalue()


def summary_lines(compared: Sequence[VariantComparison]) -> list[str]:
    """The ranking in short, for a terminal: bits per byte, and how they differ from the baseline's."""
    width = max((len(one.name) for one in compared), default=0)
    lines = []
    for one in compared:
        measured, seeds = one.figures[PRIMARY], len(one.figures[PRIMARY].by_seed)
        line = f"  {one.name:<{width}}  {measured.mean:.4f} bits per byte, {seeds} seed{'' if seeds == 1 else 's'}"
        if (difference := measured.difference) is not None:
            line += f"  {difference.mean:+z.4f}"
            if (ends := difference.t_interval) is not None:
                line += f" ({ends[0]:+z.4f} to {ends[1]:+z.4f}), p {p_text(one.corrected_p)}"
        lines.append(line)
    return lines
