"""The direction that all hidden states share, how much of it a router sees, and how a router lies to the data."""

# Shapes: D hidden, E experts, V directions.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.moments import SingularDirections
from pathmoe_eval.geometry.router_map import Matrix


@dataclass(frozen=True, kw_only=True)
class SharedDirection:
    """The first right singular vector v of the states, which are not centred.

    "The Myth of Expert Specialization" (arXiv 2604.09780), Equation 7 and Figure 2; the forms are our reading.
    """

    state_energy: float
    """|H v|^2 / |H|_F^2 over states H [N, D]: the share of their energy along v."""
    logit_energy: float | None
    """|Pc v|^2 |H v|^2 / |Pc H^T|_F^2 with the centred router Pc: the same share of the logits. Proposition 2 has a
    balance loss drive it to 0; for a random router, in expectation of both sums, it is `state_energy`. None for a
    router without a matrix, or logits that are all equal."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How strongly a router responds along each singular direction of the data (Equation 4 and Figures 16 to 23 of the
    same paper; centring the router first is our choice)."""

    singular_value: tuple[float, ...]
    """Of the states, per token: divided by the root of their number."""
    ratio: tuple[float, ...]
    """|Pc v_i|^2 over its expectation for a random router of equal Frobenius norm, |Pc|_F^2 / D. 1: as by chance; below
    it, the router turns away from the direction."""
    total: float
    """|Pc H^T|_F^2 over its expectation for such a random router, |Pc|_F^2 |H|_F^2 / D: the mean of `ratio` with the
    states' energy as weights."""


def shared_direction(directions: SingularDirections, centred_ED: Matrix | None) -> SharedDirection:
    """Energy along the first singular direction of the uncentred states.

    Args:
        directions: of the states.
        centred_ED: the router's matrix, its rows less their mean; None where it has none.
    """
    state_energy = float(directions.energy_share_V[0])
    if centred_ED is None:
        return SharedDirection(state_energy=state_energy, logit_energy=None)
    logits_V = _response_V(directions, centred_ED) * directions.values_V**2
    total = float(logits_V.sum())
    return SharedDirection(state_energy=state_energy, logit_energy=float(logits_V[0]) / total if total else None)


def alignment(directions: SingularDirections, centred_ED: Matrix | None, num_tokens: int) -> Alignment | None:
    """How the router lies to the data; None for a router without a matrix, or whose rows are all equal.

    Args:
        directions: of the states.
        centred_ED: the router's matrix, its rows less their mean; None where it has none.
        num_tokens: how many states there were.
    """
    if centred_ED is None:
        return None
    norm = float((centred_ED**2).sum())
    if not norm:
        return None
    chance = norm / centred_ED.shape[1]
    response_V = _response_V(directions, centred_ED)
    squares_V = directions.values_V**2
    return Alignment(
        singular_value=tuple((directions.values_V / np.sqrt(num_tokens)).tolist()),
        ratio=tuple((response_V / chance).tolist()),
        total=float(response_V @ squares_V / (chance * squares_V.sum())),
    )


def _response_V(directions: SingularDirections, centred_ED: Matrix) -> NDArray[np.float64]:
    """|Pc v|^2 of each direction; times the squared singular values they add up to |Pc H^T|_F^2."""
    return np.asarray(((directions.directions_VD @ centred_ED.T) ** 2).sum(axis=1))
