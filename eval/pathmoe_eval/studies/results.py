"""What the finished runs of a study have left, read from their folders."""

# Shapes: M documents.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathmoe.training.run_record import read_record
from pathmoe_eval.closing import SUMMARY_FILE
from pathmoe_eval.reports.report import REPORT_FILE, read_report
from pathmoe_eval.studies.figures import figures_of
from pathmoe_eval.studies.learning_curve import learning_curve
from pathmoe_eval.studies.runs import StudyRun


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """A finished run."""

    variant: str
    seed: int
    folder: Path
    figures: dict[str, float]
    """By the keys of `FIGURES`."""
    curve: dict[int, float]
    """Validation loss by training tokens."""
    num_tokens: int
    """Tokens that paths were counted on."""
    data_hash: str
    """Of the tokens and documents that it was evaluated on."""
    nats_M: NDArray[np.float64]
    """Of each scored document."""
    bytes_M: NDArray[np.float64]
    """UTF-8 bytes of each."""
    provenance: dict[str, Any]
    """Versions, commit and machine of the last part of its training."""


def read_results(runs: Sequence[StudyRun]) -> list[RunResult]:
    """Results of the runs that are finished, in their order."""
    return [_read(run) for run in runs if run.is_finished]


def _read(run: StudyRun) -> RunResult:
    report = read_report(run.evaluation_folder / REPORT_FILE)
    sections = dict(report["sections"])
    if run.perturbation_folder is not None:
        sections["perturbation"] = read_report(run.perturbation_folder / REPORT_FILE)["sections"]["perturbation"]
    documents = [one for one in sections["perplexity"]["by_document"] if one["num_tokens"]]
    summary = json.loads((run.folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    parts = read_record(run.folder).parts
    return RunResult(
        variant=run.variant.name,
        seed=run.seed,
        folder=run.folder,
        figures=figures_of(summary, sections),
        curve=learning_curve(run.folder, run.variant.tokens_per_step),
        num_tokens=report["run"]["num_tokens"],
        data_hash=report["run"]["data_hash"],
        nats_M=np.array([one["nats"] for one in documents]),
        bytes_M=np.array([one["num_bytes"] for one in documents]),
        provenance=parts[-1] if parts else {},
    )
