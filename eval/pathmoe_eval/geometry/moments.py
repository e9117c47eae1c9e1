"""First and second moments of hidden states, added up chunk by chunk, and their singular directions.

N states of width D are far more than fit in memory, but their Gram matrix is D by D, and its eigenvectors are the right
singular vectors of the matrix of all states.
"""

# Shapes: N tokens, D hidden, V directions.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.router_map import Matrix


class StateMoments:
    """Adds up states of one layer in float64, since a Gram matrix squares singular values, and with them rounding."""

    def __init__(self, hidden_size: int) -> None:
        self.num_tokens = 0
        self.sum_D = np.zeros(hidden_size)
        self.gram_DD = np.zeros((hidden_size, hidden_size))

    def update(self, states_ND: NDArray[np.floating]) -> None:
        """Add a chunk of states, which are finite.

        Raises:
            ValueError: states of another width, or not finite.
        """
        if states_ND.ndim != 2 or states_ND.shape[1] != len(self.gram_DD):
            raise ValueError(f"states ({list(states_ND.shape)}) must be [tokens, {len(self.gram_DD)}]")
        if not np.isfinite(states_ND).all():
            raise ValueError("states (not finite) must be finite; load the model in a wider dtype")
        wide_ND = states_ND.astype(np.float64)
        self.add(len(states_ND), wide_ND.sum(axis=0), wide_ND.T @ wide_ND)

    def add(self, num_tokens: int, sum_D: NDArray[np.float64], gram_DD: Matrix) -> None:
        """Add a chunk of states by its sum and its Gram matrix."""
        self.num_tokens += num_tokens
        self.sum_D += sum_D
        self.gram_DD += gram_DD

    def merge(self, other: StateMoments) -> None:
        """Add everything that `other`, of the same width, has counted."""
        self.add(other.num_tokens, other.sum_D, other.gram_DD)


@dataclass(frozen=True, eq=False, kw_only=True)
class SingularDirections:
    """The singular value decomposition of the matrix of all states, without its left side, and their mean."""

    num_tokens: int
    mean_D: NDArray[np.float64]
    """State; where tokens share much, the first direction is near it."""
    values_V: NDArray[np.float64]
    """Singular values, descending; those that are rounding are left out."""
    directions_VD: Matrix
    """Right singular vectors, orthonormal rows in the order of their values."""

    @property
    def energy_share_V(self) -> NDArray[np.float64]:
        """Share of the squared Frobenius norm of the states in each direction."""
        squares_V = self.values_V**2
        return squares_V / squares_V.sum()


def singular_directions(moments: StateMoments) -> SingularDirections:
    """Singular values and right singular vectors of all states, which are not centred.

    Args:
        moments: of at least one state that is not zero.

    Raises:
        ValueError: no state, or none that differs from zero.
    """
    squares_D, vectors_DD = np.linalg.eigh(moments.gram_DD)
    squares_D, vectors_DD = squares_D[::-1], vectors_DD[:, ::-1]
    if not moments.num_tokens or squares_D[0] <= 0:
        raise ValueError(f"states ({moments.num_tokens} tokens) must hold one that differs from zero; pass other text")
    kept_D = squares_D > len(squares_D) * np.finfo(np.float64).eps * squares_D[0]
    return SingularDirections(
        num_tokens=moments.num_tokens,
        mean_D=moments.sum_D / moments.num_tokens,
        values_V=np.sqrt(squares_D[kept_D]),
        directions_VD=vectors_DD[:, kept_D].T,
    )
