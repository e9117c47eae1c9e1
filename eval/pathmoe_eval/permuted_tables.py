"""Joint counts of two layers as they would be if the tokens of one were permuted: a null with the same loads."""

# Shapes: E experts a layer, R permutations, A and B experts of either layer that have tokens.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import random_table

NUM_PERMUTATIONS = 19
"""The highest of 19 null figures is exceeded by chance one time in 20."""

_SEED = 0


def permuted_tables(joint_EE: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tables with the row and column sums of `joint_EE`, each drawn as one seeded permutation of the tokens gives it.

    Permuting the tokens of one layer leaves both layers' loads and makes them independent; its joint counts follow the
    distribution of random tables with fixed margins, which are drawn here without the tokens (Patefield, Applied
    Statistics 30, 1981, algorithm AS 159). Margins are sorted first, so that names of experts do not matter.

    Args:
        joint_EE: int64 [experts, experts], not all 0.

    Returns:
        int64 [permutations, rows with tokens, columns with tokens].
    """
    load_A, load_B = (_sorted_load(joint_EE.sum(axis=axis)) for axis in (1, 0))
    rng = np.random.default_rng(_SEED)
    tables_RAB: NDArray[np.int64] = random_table.rvs(
        load_A, load_B, size=NUM_PERMUTATIONS, method="patefield", random_state=rng
    )
    return tables_RAB


def _sorted_load(load_E: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.sort(load_E[load_E > 0])[::-1]
