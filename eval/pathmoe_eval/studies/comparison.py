"""Variants of a study side by side: means over seeds, and how each differs from the baseline."""

# Shapes: S seeds, M documents.

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pathmoe_eval.studies.figure import Factor
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
    """The geometric one of a figure that is a factor."""
    interval: Ends | None
    """95% t interval of the mean over seeds; None for one seed."""
    difference: PairedDifference | None
    """From the baseline, of logarithms where the figure is a factor; None for the baseline, and without a seed in
    common."""


@dataclass(frozen=True, kw_only=True)
class VariantComparison:
    """One variant."""

    name: str
    figures: dict[str, Measured]
    """By the keys of `FIGURES`; those that no run has are left out."""
    corrected_p: float | None
    """Of the difference in bits per byte, corrected after Holm for all pairs that the study compares; None for the
    baseline, and where there is no test."""
    documents_interval: Ends | None
    """95% interval of the difference in bits per byte over the draw of seeds and of documents; None where runs were
    evaluated on different documents, and for the baseline."""


def compare_variants(
    results: Sequence[RunResult], names: Sequence[str], baselines: Sequence[str]
) -> dict[str, list[VariantComparison]]:
    """By baseline the variants that have results, the one with the fewest bits per byte first.

    Args:
        results: of finished runs; those without bits per byte do not count.
        names: of all variants.
        baselines: that all others are compared with.
    """
    runs = {
        name: {one.seed: one for one in results if one.variant == name and PRIMARY in one.figures} for name in names
    }
    there = [name for name in names if runs[name]]
    figures = {
        baseline: {name: _measured(runs[name], runs[baseline] if name != baseline else {}) for name in there}
        for baseline in baselines
    }
    corrected = _corrected_p(figures, names)
    return {
        baseline: sorted(
            (
                VariantComparison(
                    name=name,
                    figures=of_one,
                    corrected_p=corrected.get(frozenset((name, baseline))),
                    documents_interval=None if name == baseline else _documents_interval(runs[name], runs[baseline]),
                )
                for name, of_one in of_baseline.items()
            ),
            key=lambda one: one.figures[PRIMARY].mean,
        )
        for baseline, of_baseline in figures.items()
    }


def _corrected_p(
    figures: Mapping[str, Mapping[str, Mapping[str, Measured]]], names: Sequence[str]
) -> dict[frozenset[str], float | None]:
    """Of every pair of a variant and a baseline; a pair of two baselines is one pair."""
    pairs = {frozenset((name, baseline)) for baseline in figures for name in names if name != baseline}
    tested = {
        frozenset((name, baseline)): _p_value(measured)
        for baseline, of_baseline in figures.items()
        for name, measured in of_baseline.items()
        if name != baseline
    }
    return dict(zip(tested, holm(list(tested.values()), len(pairs)), strict=True))


def _measured(runs: Mapping[int, RunResult], baseline: Mapping[int, RunResult]) -> dict[str, Measured]:
    measured = {}
    for figure in FIGURES:
        by_seed = {seed: run.figures[figure.key] for seed, run in sorted(runs.items()) if figure.key in run.figures}
        if not by_seed:
            continue
        others = {seed: run.figures[figure.key] for seed, run in baseline.items() if figure.key in run.figures}
        measured[figure.key] = _measured_figure(figure.factor, by_seed, others)
    return measured


def _measured_figure(factor: Factor | None, by_seed: dict[int, float], others: Mapping[int, float]) -> Measured:
    """Statistics of a figure, or of the logarithm of one that is a factor."""

    def logs(values: Mapping[int, float]) -> Mapping[int, float]:
        return values if factor is None else {seed: factor.log(value) for seed, value in values.items()}

    def back(statistic: float) -> float:
        return statistic if factor is None else factor.value(statistic)

    own = logs(by_seed)
    ends = t_interval(list(own.values()))
    return Measured(
        by_seed=by_seed,
        mean=back(statistics.fmean(own.values())),
        interval=None if ends is None else (back(ends[0]), back(ends[1])),
        difference=paired_difference(own, logs(others)),
    )


def _p_value(figures: Mapping[str, Measured]) -> float | None:
    difference = figures[PRIMARY].difference
    return None if difference is None else difference.p_value


def _documents_interval(runs: Mapping[int, RunResult], baseline: Mapping[int, RunResult]) -> Ends | None:
    seeds = sorted(runs.keys() & baseline.keys())
    if not seeds or len({run.data_hash for seed in seeds for run in (runs[seed], baseline[seed])}) > 1:
        return None
    difference_SM = np.stack([runs[seed].nats_M - baseline[seed].nats_M for seed in seeds])
    return seeds_and_documents_interval(difference_SM / math.log(2), runs[seeds[0]].bytes_M)
