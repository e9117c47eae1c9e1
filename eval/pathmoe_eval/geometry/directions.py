"""The direction that all hidden states share, how much of it a router sees, and how a router lies to the data."""

# Shapes: D hidden, E experts, V directions.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.moments import SingularDirections
from pathmoe_eval.geometry.router_map import Matrix


@dataclass(frozen=True, kw_only=True)
class SharedDirection:
    """What the states, which are not centred, share: their first right singular vector v, and their mean m.

    "The Myth of Expert Specialization" (arXiv 2604.09780), Equation 7 and Figure 2, measures along v, and Proposition 2
    is on m; the forms are our reading. The two are one direction only where tokens share much: `mean_cosine` tells.
    """

    state_energy: float
    """|H v|^2 / |H|_F^2 over states H [N, D]: the share of their energy along v."""
    logit_energy: float | None
    """|Pc v|^2 |H v|^2 / |Pc H^T|_F^2 with the centred router Pc: the same share of the logits; for a random router, in
    expectation of both sums, it is `state_energy`. None for a router without a matrix, or logits that are all equal."""
    mean_state_energy: float
    """N |m|^2 / |H|_F^2: the share of the states' energy that centring them would take away."""
    mean_logit_energy: float | None
    """N |Pc m|^2 / |Pc H^T|_F^2: the same share of the logits, which is what favours the same experts for all tokens.
    Proposition 2 has a balance loss drive it to 0; for a random router it is, as above, `mean_state_energy`. None as
    above."""
    mean_cosine: float | None
    """|v m| / |m|; None where the mean is 0."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How strongly a router responds along each singular direction of the data (Equation 4 and Figures 16 to 23 of the
    same paper; that random routers have its Frobenius norm is our reading, centring the router first our choice)."""

    singular_value: tuple[float, ...]
    """Of the states, per token: divided by the root of their number."""
    ratio: tuple[float, ...]
    """|Pc v_i|^2 over its expectation for a random router of equal Frobenius norm, |Pc|_F^2 / D. 1: as by chance; below
    it, the router turns away from the direction."""
    total: float
    """|Pc H^T|_F^2 over its expectation for such a random router, |Pc|_F^2 |H|_F^2 / D: the mean of `ratio` with the
    states' energy as weights (our reading of an alignment in one number)."""


def shared_direction(directions: SingularDirections, centred_ED: Matrix | None) -> SharedDirection:
    """Energy along the first singular direction of the uncentred states, and of their mean.

    Args:
        directions: of the states.
        centred_ED: the router's matrix, its rows less their mean; None where it has none.
    """
    mean_D, squares_V = directions.mean_D, directions.values_V**2
    mean_square = float(mean_D @ mean_D)
    logit_energy = mean_logit_energy = None
    if centred_ED is not None:
        logits_V = _response_V(directions.directions_VD, centred_ED) * squares_V
        if total := float(logits_V.sum()):
            logit_energy = float(logits_V[0]) / total
            of_mean = float(_response_V(mean_D[None], centred_ED)[0])
            mean_logit_energy = directions.num_tokens * of_mean / total
    return SharedDirection(
        state_energy=float(directions.energy_share_V[0]),
        logit_energy=logit_energy,
        mean_state_energy=directions.num_tokens * mean_square / float(squares_V.sum()),
        mean_logit_energy=mean_logit_energy,
        mean_cosine=abs(float(directions.directions_VD[0] @ mean_D)) / math.sqrt(mean_square) if mean_square else None,
    )


def alignment(directions: SingularDirections, centred_ED: Matrix | None) -> Alignment | None:
    """How the router lies to the data; None for a router without a matrix, or whose rows are all equal.

    Args:
        directions: of the states.
        centred_ED: the router's matrix, its rows less their mean; None where it has none.
    """
    if centred_ED is None:
        return None
    norm = float((centred_ED**2).sum())
    if not norm:
        return None
    chance = norm / centred_ED.shape[1]
    response_V = _response_V(directions.directions_VD, centred_ED)
    squares_V = directions.values_V**2
    return Alignment(
        singular_value=tuple((directions.values_V / math.sqrt(directions.num_tokens)).tolist()),
        ratio=tuple((response_V / chance).tolist()),
        total=float(response_V @ squares_V / (chance * squares_V.sum())),
    )


def _response_V(directions_VD: Matrix, centred_ED: Matrix) -> NDArray[np.float64]:
    """|Pc v|^2 of each; of singular directions, times their squared values, these add up to |Pc H^T|_F^2."""
    return np.asarray(((directions_VD @ centred_ED.T) ** 2).sum(axis=1))
