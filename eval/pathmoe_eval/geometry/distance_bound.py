"""Proposition 1: the distance of two tokens' logits is bounded by that of their hidden states, as the router sees them.

"The Myth of Expert Specialization" (arXiv 2604.09780) bounds it by hidden-state distance in a data-dependent
geometry; constants and form are our reading. For logits P h + b, the centred router Pc with singular values
s_1 >= ... >= s_r > 0, and the difference d of two states,

    s_r |d|_row <= |Pc d| <= s_1 |d|_row <= s_1 |d|,

where |d|_row is the length of d in the row space of Pc. What lies in the null space is not seen: states that are near
in the row space have near logits, and states that are far apart there have not, hence "necessary and sufficient".
"""

# Shapes: P pairs, D hidden, E experts.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.pairs import TokenPairs
from pathmoe_eval.geometry.router_map import RouterMap

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class DistanceBound:
    """The bound on every pair, in the form that we read Proposition 1 in (see the module)."""

    num_pairs: int
    largest_gain: float
    """s_1 sqrt(D / E): the most that an RMS distance of states gives as RMS distance of logits."""
    smallest_gain: float
    """s_r sqrt(D / E): the least, in the row space."""
    violations_row: int
    """Pairs above the bound of the row space, beyond rounding."""
    violations_full: int
    """Pairs above the bound of the full space, which are above that of the row space, too."""
    violations_below: int
    """Pairs below the lower bound."""
    tightness_row: tuple[float, ...]
    """Logit distance over its bound in the row space: quantiles `QUANTILES` over pairs."""
    tightness_full: tuple[float, ...]
    """The same with the bound of the full space."""


def distance_bound(pairs: TokenPairs, router: RouterMap, rounding: float) -> DistanceBound | None:
    """The bound checked on every pair; None for a router that is not linear, or one that sees nothing.

    Args:
        pairs: of the router's layer, with logits before anything but a bias was added to them.
        router: the layer's.
        rounding: what rounding may add to a distance of logits; beyond it, the bound is violated.
    """
    if router.kind != "linear" or router.centred_ED is None or not len(router.visible_RD):
        return None
    num_experts, hidden_size = router.centred_ED.shape
    rank = len(router.visible_RD)
    singular = np.sqrt(hidden_size / num_experts) * np.linalg.svd(router.centred_ED, compute_uv=False)
    largest, smallest = float(singular[0]), float(singular[rank - 1])
    # Directions that the row space leaves out as rounding are in the logits all the same.
    unseen_P = singular[rank:].max(initial=0.0) * pairs.distance["full"]
    above_row_P, above_full_P = largest * pairs.distance["row"], largest * pairs.distance["full"]
    below_P = smallest * pairs.distance["row"]
    found_P = pairs.logit_distance_P
    return DistanceBound(
        num_pairs=len(found_P),
        largest_gain=largest,
        smallest_gain=smallest,
        violations_row=int((found_P > above_row_P + unseen_P + rounding).sum()),
        violations_full=int((found_P > above_full_P + rounding).sum()),
        violations_below=int((found_P < below_P - rounding).sum()),
        tightness_row=_quantiles(found_P, above_row_P),
        tightness_full=_quantiles(found_P, above_full_P),
    )


def _quantiles(found_P: NDArray[np.float64], bound_P: NDArray[np.float64]) -> tuple[float, ...]:
    is_apart_P = bound_P > 0
    if not is_apart_P.any():
        return ()
    return tuple(np.quantile(found_P[is_apart_P] / bound_P[is_apart_P], QUANTILES).tolist())
