"""How often paths occur in all tokens but some: the counts from which every figure of concentration is made."""

# Shapes: P distinct paths, Q distinct paths of a part, W 64-bit words of a path, C distinct values of a count.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.paths.path_keys import mix
from pathmoe_eval.paths.paths import PathCounts


class PathsLeftOut:
    """Counts of paths that parts can be taken from one at a time, at a cost that grows with the part."""

    def __init__(self, counts: PathCounts) -> None:
        """Prepare the counts of all tokens, which must not change meanwhile."""
        keys_WP, counts_P = counts.keys()
        mixed_P = mix(keys_WP)
        order_P = np.argsort(mixed_P)
        self._mixed_P, self._keys_WP, self._counts_P = mixed_P[order_P], keys_WP[:, order_P], counts_P[order_P]
        self._sizes_C, self._multiplicity_C = np.unique(counts_P, return_counts=True)

    def frequencies(self, part: PathCounts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `PathCounts.frequencies`, of the tokens that are not in `part`, some of those that were counted."""
        keys_WQ, part_Q = part.keys()
        counts_Q = self._counts_P[self._find(keys_WQ)]
        one_Q = np.ones_like(counts_Q)
        sizes = np.concatenate([self._sizes_C, counts_Q, counts_Q - part_Q])
        changes = np.concatenate([self._multiplicity_C, -one_Q, one_Q])
        sizes_C, place = np.unique(sizes, return_inverse=True)
        multiplicity_C = np.zeros_like(sizes_C)
        np.add.at(multiplicity_C, place, changes)
        is_there_C = (multiplicity_C > 0) & (sizes_C > 0)
        return sizes_C[is_there_C], multiplicity_C[is_there_C]

    def _find(self, keys_WQ: NDArray[np.uint64]) -> NDArray[np.int64]:
        at_Q = np.searchsorted(self._mixed_P, mix(keys_WQ))
        while (is_other_Q := np.any(self._keys_WP[:, at_Q] != keys_WQ, axis=0)).any():
            at_Q += is_other_Q  # two paths with one mix stand side by side
        return at_Q
