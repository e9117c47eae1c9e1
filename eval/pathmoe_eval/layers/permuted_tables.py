"""Joint counts of two variables as they would be if the tokens of one were permuted: a null with the same loads."""

# Shapes: E experts a layer, R permutations, A and B experts of either layer (or other outcomes) that have tokens.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import random_table

from pathmoe_eval.draws_without_replacement import groups_of_rows

NUM_PERMUTATIONS = 19
"""The highest of 19 null figures is exceeded by chance one time in 20."""
_MAX_TOKENS = 1 << 31  # scipy multiplies sums of rows and columns as int64, and reads where it may not once that fails


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
    return random_tables(load_A, load_B, NUM_PERMUTATIONS, np.random.default_rng(seed))


def random_tables(
    load_A: NDArray[np.int64], load_B: NDArray[np.int64], num_tables: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Tables with these sums of rows and of columns, as permuted tokens give them: int64 [tables, rows, columns].

    Args:
        load_A: int64 [rows], each at least 1.
        load_B: int64 [columns], each at least 1, of the same total.
        num_tables: how many.
        rng: of the draws.
    """
    shape_RAB = (num_tables, len(load_A), len(load_B))
    if 1 in shape_RAB[1:]:
        # Nothing is left to chance, and scipy's tables of one row or column have negative counts (1.17).
        return np.broadcast_to(load_A[:, None] if len(load_B) == 1 else load_B, shape_RAB)
    if int(load_A.sum()) <= _MAX_TOKENS:
        tables_RAB: NDArray[np.int64] = random_table.rvs(
            load_A, load_B, size=num_tables, method="patefield", random_state=rng
        )
        return tables_RAB
    return np.stack([_large_table(load_A, load_B, rng) for _ in range(num_tables)])


def _large_table(load_A: NDArray[np.int64], load_B: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The same of more tokens than scipy serves, in groups of rows."""
    table_AB = np.zeros((len(load_A), len(load_B)), dtype=np.int64)
    for rows, of_group_B in groups_of_rows(load_A, load_B, _MAX_TOKENS, rng):
        if rows.stop - rows.start == 1:
            table_AB[rows] = of_group_B
        else:
            has_tokens_B = of_group_B > 0
            table_AB[rows, has_tokens_B] = random_table.rvs(
                load_A[rows], of_group_B[has_tokens_B], method="patefield", random_state=rng
            )
    return table_AB


def _sorted_load(load_E: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.sort(load_E[load_E > 0])[::-1]
