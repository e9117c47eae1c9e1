"""Intervals over the draw of documents, of a figure that is computed again without each group of them."""

# Shapes: G groups of documents.

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student


def jackknife_interval(
    figure: float, without_G: NDArray[np.float64], num_tokens_G: NDArray[np.integer], confidence: float
) -> tuple[float, float]:
    """Interval of a figure for this number of tokens, from its values without each group (delete-a-group jackknife).

    Tokens of a document depend on each other, so documents are what is left out (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 11). A figure that grows with the sample, as the entropy of paths does, falls
    whenever a group goes, the more the larger the group. That is the number of tokens and not the draw, so the average
    fall per token is taken out of each: what is left is the spread of samples that are equally large (our choice).
    For a mean over tokens this is the usual variance of a ratio. Where some groups are far larger than others, a fall
    that is not in proportion to their tokens is left in, and intervals of distinct paths are several times too wide.

    Args:
        figure: of all groups.
        without_G: of all groups but one.
        num_tokens_G: tokens of each group.
        confidence: of the interval, by Student's t with one degree of freedom less than groups.

    Returns:
        Lower and upper end, which may lie beyond the figure's range.

    Raises:
        ValueError: fewer than three groups.
    """
    num_groups = len(without_G)
    if num_groups < 3:
        raise ValueError(f"groups ({num_groups}) must be at least 3; pass more documents")
    change_G = without_G - figure
    beside_size_G = change_G - change_G.sum() / num_tokens_G.sum() * num_tokens_G
    error = math.sqrt((num_groups - 1) / num_groups * float(beside_size_G @ beside_size_G))
    reach = error * float(student.ppf((1 + confidence) / 2, num_groups - 1))
    return figure - reach, figure + reach
