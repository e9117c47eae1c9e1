"""Concentration of whole paths and of their blocks in fixed memory: what a report says where it does not count them.

Entropies and numbers of paths are those of a `PathSketch`, with its standard errors; loads, and with them what
independent layers would show, are exact.
"""

# Shapes: N tokens, L MoE layers, E experts.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.paths.entropy import miller_madow_bits, plug_in_bits
from pathmoe_eval.paths.path_sketch import PathSketch
from pathmoe_eval.paths.paths import check_range, select_paths
from pathmoe_eval.paths.sketch_estimates import SketchConcentration


@dataclass(frozen=True, kw_only=True)
class SketchedPart:
    """Estimated concentration of the paths through consecutive MoE layers, against layers that choose independently."""

    first_layer: int
    """Index of the first layer among the MoE layers, from 0."""
    num_layers: int
    """Layers of the part."""
    entropy: SketchConcentration
    """Distinct paths, entropy, coverage and Zipf plot, with standard errors."""
    ceiling_bits: float
    """The lower of log2(num_tokens) and the entropy of all possible paths equally often."""
    share_of_ceiling: float | None
    """Entropy over ceiling_bits; None where that is 0."""
    entropy_bits_null: float
    """Entropy of independent layers with the same loads, in unlimited data: exact, and no estimate."""
    total_correlation_bits: float
    """entropy_bits_null less the entropy, with whose standard error; too high in small samples."""
    total_correlation_corrected_bits: float
    """The same from Miller-Madow entropies."""


@dataclass(frozen=True, kw_only=True)
class SketchedPaths:
    """Concentration of top-1 paths in fixed memory."""

    whole: SketchedPart
    """Paths through all layers."""
    blocks: tuple[SketchedPart, ...]
    """Paths through each block."""


class SketchedPathCounts:
    """Sketches of whole paths and of their blocks, from batches of any size; as mergeable as `PathSketch`."""

    def __init__(self, *, blocks: Sequence[range], num_layers: int, num_experts: int) -> None:
        """Sketch paths over `num_layers` layers of `num_experts`, and through each block of consecutive layers."""
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.blocks = tuple(blocks)
        self._parts = (range(num_layers), *self.blocks)
        self._sketches = [PathSketch(num_layers=len(part), num_experts=num_experts) for part in self._parts]
        self._loads_LE = np.zeros((num_layers, num_experts), dtype=np.int64)

    def update(self, path_ids_NL: NDArray[np.integer]) -> None:
        """Add a batch of whole paths, integers [tokens, layers].

        Raises:
            ValueError: wrong shape or dtype, or an id out of range.
        """
        path_ids_NL = select_paths(path_ids_NL)
        check_range(path_ids_NL, self.num_layers, self.num_experts)
        for part, sketch in zip(self._parts, self._sketches, strict=True):
            sketch.update(path_ids_NL[:, part.start : part.stop])
        for load_E, ids_N in zip(self._loads_LE, path_ids_NL.T, strict=True):
            load_E += np.bincount(ids_N, minlength=self.num_experts)

    def merge(self, other: SketchedPathCounts) -> None:
        """Add everything that `other`, of the same shape and blocks, has seen; `other` keeps it.

        Raises:
            ValueError: the two have different shapes or blocks.
        """
        check_mergeable(self, other, "num_layers", "num_experts", "blocks")
        for sketch, theirs in zip(self._sketches, other._sketches, strict=True):
            sketch.merge(theirs)
        self._loads_LE += other._loads_LE

    def result(self) -> SketchedPaths:
        """Estimates for all tokens so far.

        Raises:
            ValueError: no token was counted.
        """
        whole, *blocks = (self._part(*pair) for pair in zip(self._parts, self._sketches, strict=True))
        return SketchedPaths(whole=whole, blocks=tuple(blocks))

    def _part(self, part: range, sketch: PathSketch) -> SketchedPart:
        entropy = sketch.result()
        loads = [np.unique(load_E[load_E > 0], return_counts=True) for load_E in self._loads_LE[part.start : part.stop]]
        entropy_bits_null = sum(plug_in_bits(*load) for load in loads)
        ceiling_bits = min(entropy.ceiling_bits, len(part) * math.log2(self.num_experts))
        corrected_bits = entropy.entropy_bits + (entropy.num_paths - 1) / (2 * entropy.num_tokens * math.log(2))
        return SketchedPart(
            first_layer=part.start,
            num_layers=len(part),
            entropy=entropy,
            ceiling_bits=ceiling_bits,
            share_of_ceiling=entropy.entropy_bits / ceiling_bits if ceiling_bits else None,
            entropy_bits_null=entropy_bits_null,
            total_correlation_bits=entropy_bits_null - entropy.entropy_bits,
            total_correlation_corrected_bits=sum(miller_madow_bits(*load) for load in loads) - corrected_bits,
        )
