"""Path analysis of MoE routers: pure functions over arrays of expert ids, with streaming accumulators."""

from pathmoe_eval.layers.agreement import AdjacentAgreement, AdjacentCounts, adjacent_agreement
from pathmoe_eval.paths.paths import PathCounts, PathEntropy, path_entropy

__all__ = [
    "AdjacentAgreement",
    "AdjacentCounts",
    "PathCounts",
    "PathEntropy",
    "adjacent_agreement",
    "path_entropy",
]
