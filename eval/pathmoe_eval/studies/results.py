"""What the finished runs of a study have left, read from their folders or from what was kept of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pathmoe.training.run_record import read_record
from pathmoe_eval.closing import SUMMARY_FILE
from pathmoe_eval.reports.report import REPORT_FILE, read_report
from pathmoe_eval.studies.figures import figures_of
from pathmoe_eval.studies.run_logs import learning_curve, loss_roughness, monitored_curves
from pathmoe_eval.studies.run_result import RunResult, keep_result
from pathmoe_eval.studies.runs import StudyRun

_FACTS = ("pathmoe", "torch", "transformers", "lightning", "python", "threads", "device")


def read_result(run: StudyRun, *, renew: bool) -> RunResult | None:
    """The result of a run: the one that is kept, else what its folder has, which is kept then; None without either.

    Args:
        run: of a study.
        renew: whether to read the folder, where it has all, in the place of what is kept.

    Raises:
        ValueError: what is kept, or in the folder, is damaged.
    """
    kept = None if renew and run.is_complete else run.kept()
    if kept is not None or not run.is_complete:
        return kept
    try:
        result = _read(run)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.folder} ({error!r}) must be a whole run and its reports; remove it") from error
    keep_result(run.result_file, result)
    return result


def _read(run: StudyRun) -> RunResult:
    report = read_report(run.evaluation_folder / REPORT_FILE)
    sections, evaluations = dict(report["sections"]), [report["run"]]
    for name, folder in (("perturbation", run.perturbation_folder), ("geometry", run.geometry_folder)):
        if folder is not None:
            other = read_report(folder / REPORT_FILE)
            sections[name] = other["sections"][name]
            evaluations.append(other["run"])
    documents = [one for one in sections["perplexity"]["by_document"] if one["num_tokens"]]
    summary = json.loads((run.folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    parts = read_record(run.folder).parts
    return RunResult(
        variant=run.variant.name,
        seed=run.seed,
        figures=figures_of(summary, sections | {"training": {"roughness": loss_roughness(run.folder)}}),
        curve=learning_curve(run.folder, run.variant.tokens_per_step),
        monitored=monitored_curves(run.folder, run.variant.tokens_per_step),
        num_tokens=report["run"]["num_tokens"],
        data_hash=report["run"]["data_hash"],
        nats_M=np.array([one["nats"] for one in documents]),
        bytes_M=np.array([one["num_bytes"] for one in documents]),
        circumstances=_circumstances(parts, [one.get("versions", {}) for one in evaluations]),
        data=parts[-1]["data"] if parts else {},
    )


def _circumstances(
    parts: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Each fact with its values over the parts of a run, in their order, and the commits of its evaluations."""
    facts = {fact: [str(part[fact]) for part in parts if part.get(fact) is not None] for fact in _FACTS}
    found = {"commit": _commits(parts), "evaluation commit": _commits(evaluations), **facts}
    return {fact: list(dict.fromkeys(values)) for fact, values in found.items() if values}


def _commits(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{one['git_commit']}{' with changes' if one.get('git_dirty') else ''}"
        for one in records
        if one.get("git_commit")
    ]
