"""The report of an evaluation: `report.json` with every number, `index.html` to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pathmoe.training.run_folder import write_text_atomically
from pathmoe_eval.evaluation.identity import compared_keys
from pathmoe_eval.reports.geometry_chapters import geometry_chapters
from pathmoe_eval.reports.intervention_chapters import intervention_chapters
from pathmoe_eval.reports.layer_chapters import consistency_chapters, load_chapter, router_chapter
from pathmoe_eval.reports.locality_chapters import (
    cache_chapter,
    decomposition_chapter,
    equivalence_chapter,
    phases_chapter,
    tree_chapter,
    union_chapter,
)
from pathmoe_eval.reports.number_format import count
from pathmoe_eval.reports.page import Cell, Chapter, Table, Words, page_html
from pathmoe_eval.reports.path_chapters import concentration_chapter, flow_chapter, separation_chapter, tokens_chapter
from pathmoe_eval.reports.score_chapters import perplexity_chapter, perturbation_chapter
from pathmoe_eval.reports.sketch_chapter import sketch_chapter
from pathmoe_eval.reports.specialisation_chapters import (
    coactivation_chapter,
    domains_chapter,
    saturation_chapter,
    vocabulary_chapter,
)
from pathmoe_eval.reports.summary import summary_rows

FORMAT = 3
REPORT_FILE = "report.json"
PAGE_FILE = "index.html"

# What else a command may have put into the folder before its report.
TRACE_FOLDER = "trace"
TREE_FOLDER = "tree"

# Every analysis has the one; what is none has the others.
_ANALYSED = "load"
_NOT_OF_AN_ANALYSIS = ("perplexity", "perturbation", "saturation", "geometry", "geometry_interventions")

# What every study of a tree has.
_STUDIED = "tree"

_ALWAYS_KNOWN = ("model", "data", "num_tokens")


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write `report.json` and `index.html`, each whole or not at all.

    A report of the same run that lies there already keeps its other sections, and the page shows all of them; its
    `run`, where it came from another command, is kept in `earlier_runs`.

    Args:
        folder: made if it is not there.
        report: `run`, what was evaluated and how, of which command, model, data and num_tokens must be there; and
            `sections` by name, each as `dataclasses.asdict` makes it, or a list or dict of such.

    Raises:
        ValueError: the folder holds something else, or a report of another evaluation; see `refuse_another_report`.
    """
    refuse_another_report(folder, report["run"])
    path = folder / REPORT_FILE
    merged = _merged(read_report(path), report) if path.exists() else {"format": FORMAT, **report}
    text = json.dumps(merged, indent=1, allow_nan=False)
    # What is read from the file is what the page shows: tuples are lists in both.
    page = report_page(json.loads(text))
    write_text_atomically(path, text + "\n")
    write_text_atomically(folder / PAGE_FILE, page)


def refuse_another_report(folder: Path, run: Mapping[str, Any]) -> None:
    """Refuse to write the report of a run into a folder that is not its own; for before the work begins.

    Args:
        folder: where the report would be written; it need not exist.
        run: as in a report. `compared_keys` are compared, but for what it or the report there does not know.

    Raises:
        ValueError: the folder is a file or holds something else, or a report of another evaluation.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out ({folder}) must be a folder, but is a file; choose another")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.exists() else set()
    foreign = sorted(names - {REPORT_FILE, PAGE_FILE, TRACE_FOLDER, TREE_FOLDER})
    if foreign or (PAGE_FILE in names and REPORT_FILE not in names):
        found = foreign[0] if foreign else PAGE_FILE
        raise ValueError(f"--out ({folder}) must hold nothing but a report, but holds {found}; choose another folder")
    if REPORT_FILE not in names:
        return
    theirs = facts_of(read_report(folder / REPORT_FILE))
    for key in compared_keys(run, theirs):
        if key in run and key in theirs and run[key] != theirs[key]:
            raise ValueError(
                f"--out ({folder}) must hold no other report, but holds one of {key} {theirs[key]}, not {run[key]}; "
                "choose another folder"
            )


def read_report(path: Path) -> dict[str, Any]:
    """A report as it was written.

    Raises:
        ValueError: no file is there, or one that is no report of this format.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise ValueError(f"{path} ({reason}) must be the report.json of a report; give that file") from error
    parts = [report.get(key) for key in ("run", "sections")] if isinstance(report, dict) else [None]
    if "format" not in report or not all(isinstance(found, dict) for found in parts):
        raise ValueError(f"{path} (without format, run and sections) must be the report.json of a report; give that")
    if report["format"] != FORMAT:
        raise ValueError(f"{path}: format ({report['format']}) must be {FORMAT}; remove it and write it again")
    missing = [key for key in ("command", *_ALWAYS_KNOWN) if key not in report["run"]]
    if missing:
        raise ValueError(f"{path}: run (without {missing[0]}) must say what was evaluated; write the report again")
    return report


def facts_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What all the runs of a report say of it, where they differ the last one."""
    return {key: value for run in _runs_of(report) for key, value in run.items()}


def _runs_of(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """In the order in which they wrote their parts."""
    return [*report.get("earlier_runs", []), report["run"]]


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of both, the new ones where both have them; an analysis takes the place of all of another."""
    kept = old["sections"]
    if _ANALYSED in new["sections"]:
        kept = {name: section for name, section in kept.items() if name in _NOT_OF_AN_ANALYSIS}
    earlier = [run for run in _runs_of(old) if run["command"] != new["run"]["command"]]
    merged = {"format": FORMAT, "run": new["run"], "sections": {**kept, **new["sections"]}}
    return {**merged, "earlier_runs": earlier} if earlier else merged


def report_page(report: Mapping[str, Any]) -> str:
    """The page of a report, as `read_report` gives it."""
    facts = facts_of(report)
    sections = report["sections"].keys()
    about = "Routing locality" if _STUDIED in sections else "Expert paths"
    if sections <= {"geometry", "geometry_interventions"}:
        about = "Geometry of routing"
    return page_html(f"{about} of {facts['model']}", _subtitle(facts), report_chapters(report, facts))


def _subtitle(facts: Mapping[str, Any]) -> str:
    parts = [str(facts["data"]), f"{facts['num_tokens']:,} tokens"]
    if "num_generated" in facts:
        parts.append(f"{facts['num_generated']:,} generated")
    if "num_sequences" in facts:
        parts.append(f"{facts['num_sequences']:,} sequences")
    if "num_layers" in facts:
        parts.append(f"{facts['num_layers']} MoE layers")
        parts.append(f"top-{facts['num_experts_per_tok']} of {facts['num_experts']} experts")
        parts.append(f"{len(set(facts['router_of_layer']))} routers")
    return " · ".join(parts)


def report_chapters(report: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Chapter]:
    """Chapters of the sections that are there, the summary first and the runs last."""
    sections = report["sections"]
    routers = facts.get("router_of_layer", [])
    chapters: dict[str, Callable[[Any], Sequence[Chapter]]] = {
        "perplexity": lambda section: [perplexity_chapter(section)],
        "concentration": lambda section: [concentration_chapter(section)],
        "sketch": lambda section: [sketch_chapter(section)],
        "consistency": lambda section: consistency_chapters(section, routers),
        "flow": lambda section: [flow_chapter(section, routers)],
        "path_tokens": lambda section: [tokens_chapter(section)],
        "separation": lambda section: [separation_chapter(section)],
        "load": lambda section: [load_chapter(section, routers)],
        "router_scores": lambda section: [router_chapter(section)],
        "coactivation": lambda section: [coactivation_chapter(section)],
        "domains": lambda section: [domains_chapter(section)],
        "vocabulary": lambda section: [vocabulary_chapter(section)],
        "saturation": lambda section: [saturation_chapter(section)],
        "perturbation": lambda section: [perturbation_chapter(section)],
        "geometry": geometry_chapters,
        "geometry_interventions": intervention_chapters,
        "tree": lambda section: [tree_chapter(section)],
        "equivalence": lambda section: [equivalence_chapter(section)],
        "decomposition": lambda section: [decomposition_chapter(section)],
        "union_growth": lambda section: [union_chapter(section)],
        "caches": lambda section: [cache_chapter(section)],
        "phases": lambda section: [phases_chapter(section)],
    }
    shown = [chapter for name, make in chapters.items() if name in sections for chapter in make(sections[name])]
    return [_summary(sections), *shown, _runs(_runs_of(report))]


def _summary(sections: Mapping[str, Any]) -> Chapter:
    rows: list[list[Cell]] = [
        [row.name, Words(row.value, row.interval), Words(row.beside), f"{count(row.num_tokens)} {row.unit}"]
        for row in summary_rows(sections)
    ]
    # Of all intervals only those of a study have a level that the user chooses.
    level = sections["decomposition"][0]["confidence"] if "decomposition" in sections else 0.95
    table = Table(title="", head=["figure", f"value, {level:.0%} interval", "chance or bound", "sample"], rows=rows)
    return Chapter(title="Summary", notes=_interval_notes(sections), parts=[table] if rows else [])


def _interval_notes(sections: Mapping[str, Any]) -> list[str]:
    if "intervals" not in sections:
        return []
    found = sections["intervals"]
    left_out = "document" if found["num_groups"] == found["num_documents"] else f"of {found['num_groups']} groups"
    return [
        f"Intervals are over the draw of {found['num_documents']:,} documents, for this number of tokens: figures were "
        f"computed again without each {left_out}. They say nothing of another training of the model."
    ]


def _runs(runs: Sequence[Mapping[str, Any]]) -> Chapter:
    """Command, data and versions of each run that wrote a part of the report, the last one first."""
    return Chapter(
        title="How this was made",
        notes=[f"Every number is in {REPORT_FILE}, beside this page, in full precision."],
        parts=[Table(title="", head=["", ""], rows=_facts(run)) for run in reversed(runs)],
    )


def _facts(run: Mapping[str, Any]) -> list[list[Cell]]:
    hidden = {"layer_names", "router_of_layer", "versions"}
    facts = {key.replace("_", " "): _fact(value) for key, value in run.items() if key not in hidden}
    if "router_of_layer" in run:
        facts["router of each layer"] = " ".join(map(str, run["router_of_layer"]))
    if "versions" in run:
        facts["versions"] = ", ".join(f"{name} {of}" for name, of in run["versions"].items() if of is not None)
    return [[name, Words(text)] for name, text in facts.items()]


def _fact(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
