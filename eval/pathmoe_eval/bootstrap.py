"""Intervals of figures that are made from sums over documents: what the draw of the documents leaves open."""

# Shapes: M documents.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

_CELLS_PER_BATCH = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Settings of percentile bootstraps over documents.

    Tokens of a document depend on each other, so whole documents are resampled (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, chapters 8 and 13; percentile intervals are our choice). With few documents, below about
    twenty, intervals are too narrow.

    Raises:
        ValueError: a setting out of range.
    """

    num_resamples: int
    seed: int
    confidence: float

    def __post_init__(self) -> None:
        if self.num_resamples < 2:
            raise ValueError(f"--num_resamples ({self.num_resamples}) must be at least 2; raise it")
        if not 0 < self.confidence < 1:
            raise ValueError(f"--confidence ({self.confidence}) must lie between 0 and 1; change it")

    def interval(
        self, columns: Sequence[NDArray[Any]], statistic: Callable[..., NDArray[Any]]
    ) -> tuple[float, float] | None:
        """Lower and upper end of a statistic of columns [M], of which each resample takes the same documents.

        Args:
            columns: one number a document.
            statistic: from these, with any axes before that of the documents, and `axis=` to the figure.

        Returns:
            None with fewer than two documents, or where an end is not finite.
        """
        num_documents = len(columns[0])
        if num_documents < 2:
            return None
        # A resample may lie beyond the range of floats where the whole does not.
        with np.errstate(over="ignore", invalid="ignore"):
            found = bootstrap(
                tuple(columns),
                statistic,
                paired=True,
                vectorized=True,
                method="percentile",
                n_resamples=self.num_resamples,
                confidence_level=self.confidence,
                batch=max(1, _CELLS_PER_BATCH // (num_documents * len(columns))),
                rng=self.seed,
            ).confidence_interval
        ends = float(found.low), float(found.high)
        return ends if all(map(math.isfinite, ends)) else None
