"""Variants of a study side by side: means over seeds, and how each differs from the baseline."""

# Shapes: S seeds, M documents.

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pathmoe_eval.studies.figures import FIGURES, PRIMARY
from pathmoe_eval.studies.run_result import RunResult
from pathmoe_eval.studies.statistics import (
    Ends,
    PairedDifference,
    holm,
    paired_difference,
    seeds_and_documents_interval,
    t_interval,
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure of a variant."""

    by_seed: dict[int, float]
    mean: float
    interval: Ends | None
    """95% t interval of the mean over seeds; None for one seed."""
    difference: PairedDifference | None
    """From the baseline; None for the baseline, and without a seed that both have."""


@dataclass(frozen=True, kw_only=True)
class VariantComparison:
    """One variant."""

    name: str
    figures: dict[str, Measured]
    """By the keys of `FIGURES`; those that no run has are left out."""
    corrected_p: float | None
    """Of the difference in bits per byte, corrected after Holm for all comparisons of the study; None for the baseline,
    and where there is no test."""
    documents_interval: Ends | None
    """95% interval of the difference in bits per byte over the draw of seeds and of documents; None where runs were
    evaluated on different documents, and for the baseline."""


def compare_variants(results: Sequence[RunResult], names: Sequence[str], baseline: str) -> list[VariantComparison]:
    """Variants that have results, the one with the fewest bits per byte first.

    Args:
        results: of finished runs; those without bits per byte do not count.
        names: of all variants.
        baseline: that others are compared with.
    """
    runs = {
        name: {one.seed: one for one in results if one.variant == name and PRIMARY in one.figures} for name in names
    }
    there = [name for name in names if runs[name]]
    figures = {name: _measured(runs[name], runs[baseline] if name != baseline else {}) for name in there}
    p_values = [_p_value(figures[name]) for name in there]
    compared = [
        VariantComparison(
            name=name,
            figures=figures[name],
            corrected_p=corrected,
            documents_interval=None if name == baseline else _documents_interval(runs[name], runs[baseline]),
        )
        for name, corrected in zip(there, holm(p_values, len(names) - 1), strict=True)
    ]
    return sorted(compared, key=lambda one: one.figures[PRIMARY].mean)


def _measured(runs: Mapping[int, RunResult], baseline: Mapping[int, RunResult]) -> dict[str, Measured]:
    measured = {}
    for figure in FIGURES:
        by_seed = {seed: run.figures[figure.key] for seed, run in sorted(runs.items()) if figure.key in run.figures}
        if not by_seed:
            continue
        others = {seed: run.figures[figure.key] for seed, run in baseline.items() if figure.key in run.figures}
        measured[figure.key] = Measured(
            by_seed=by_seed,
            mean=statistics.fmean(by_seed.values()),
            interval=t_interval(list(by_seed.values())),
            difference=paired_difference(by_seed, others),
        )
    return measured


def _p_value(figures: Mapping[str, Measured]) -> float | None:
    difference = figures[PRIMARY].difference
    return None if difference is None else difference.p_value


def _documents_interval(runs: Mapping[int, RunResult], baseline: Mapping[int, RunResult]) -> Ends | None:
    seeds = sorted(runs.keys() & baseline.keys())
    if not seeds or len({run.data_hash for seed in seeds for run in (runs[seed], baseline[seed])}) > 1:
        return None
    difference_SM = np.stack([runs[seed].nats_M - baseline[seed].nats_M for seed in seeds])
    return seeds_and_documents_interval(difference_SM / math.log(2), runs[seeds[0]].bytes_M)
