"""Joint counts of two layers as they would be if the tokens of one were permuted: a null with the same loads."""

# Shapes: E experts a layer, R permutations, A and B experts of either layer that have tokens.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import random_table

NUM_PERMUTATIONS = 19
"""The highest of 19 null figures is exceeded by chance one time in 20."""


def permuted_tables(joint_EE: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Tables with the row and column sums of `joint_EE`, each drawn as one seeded permutation of the tokens gives it.

    Permuting the tokens of one layer leaves both layers' loads and makes them independent; its joint counts follow the
    distribution of random tables with fixed margins, which are drawn here without the tokens (Patefield, Applied
    Statistics 30, 1981, algorithm AS 159). Margins are sorted first, so that names of experts do not matter.

    Args:
        joint_EE: int64 [experts, experts], not all 0.
        seed: of the draws; pairs of layers take different ones, so that their nulls do not err together.

    Returns:
        int64 [permutations, rows with tokens, columns with tokens].
    """
    load_A, load_B = (_sorted_load(joint_EE.sum(axis=axis)) for axis in (1, 0))
    shape_RAB = (NUM_PERMUTATIONS, len(load_A), len(load_B))
    if 1 in shape_RAB[1:]:
        # Nothing is left to chance, and scipy's tables of one row or column have negative counts (1.17).
        return np.broadcast_to(np.outer(load_A, load_B) // load_A.sum(), shape_RAB)
    rng = np.random.default_rng(seed)
    tables_RAB: NDArray[np.int64] = random_table.rvs(
        load_A, load_B, size=NUM_PERMUTATIONS, method="patefield", random_state=rng
    )
    return tables_RAB


def _sorted_load(load_E: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.sort(load_E[load_E > 0])[::-1]
