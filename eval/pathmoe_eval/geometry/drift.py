"""From one MoE layer to a later one: what both routers see, how far states move there, and the agreement that follows.

Routers that are shared look at the same subspace in all their layers, and a token keeps its expert as long as its state
does not move far in it. None of the papers measures this: definitions are ours.
"""

# Shapes: N tokens, D hidden, E experts, R visible dimensions, Q principal components.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.geometry.router_map import Matrix, RouterMap

_ENERGY = 0.9
"""Share of the variance that "what a layer sees" stands for."""
_CELLS_PER_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Two layers, the first one's router taken for what is seen."""

    shares_router: bool
    router_overlap: float
    """Mean squared cosine of the principal angles between the subspaces that the two routers see: 1 if they see the
    same."""
    router_overlap_null: float
    """The same of random subspaces of these dimensions: the larger one's over D."""
    num_components: int
    """Principal components that hold 90% of the variance of what the first layer sees."""
    seen_overlap: float
    """Mean squared cosine of the principal angles between those components and as many of the other layer, both in the
    first router's row space."""
    seen_overlap_null: float
    """The same of random subspaces: components over visible dimensions."""
    step_row: float | None
    """RMS step of a state from layer to layer in the row space, over the RMS spread of states around their mean there;
    the mean step, which all tokens share, included. None where states do not differ."""
    step_row_common: float | None
    """The mean step alone, in the same unit."""
    step_null: float | None
    """The same as `step_row` for what the router does not see; None where it sees all, or all that differs."""
    agreement: float
    """Share of tokens whose highest logit is of the same expert in both layers."""
    predicted_agreement: float | None
    """The same if choices were nothing to the states: logits of the later layer are taken for a multiple of those of
    the first, `retained`, and a rest, and each token has the rest of another one. None between routers that are not
    shared, whose logits have nothing to do with each other."""
    retained: float | None
    """Slope of the later layer's logits on those of the first, by least squares over tokens and experts, each less its
    mean: states that keep their size forget what they take up, so that the slope is below 1. None as above."""
    agreement_null: float
    """The same of independent layers with the same choices."""


def drift(
    states: tuple[NDArray[np.floating], NDArray[np.floating]],
    logits: tuple[NDArray[np.floating], NDArray[np.floating]],
    routers: tuple[RouterMap, RouterMap],
    *,
    shares_router: bool,
    seed: int = 0,
) -> Drift:
    """Measure two layers.

    Args:
        states: [N, D] of both, what the routers are handed, of the same tokens; may lie on disk.
        logits: [N, E] of both; between routers that are not shared, indices of experts are names.
        routers: of both, each of which sees something.
        shares_router: whether the two share parameters.
        seed: of the tokens whose steps are exchanged.
    """
    first, second = routers
    sums = _StepSums(states, first)
    row_NR, next_row_NR = sums.seen
    components_QR = _components(row_NR)
    number = len(components_QR)
    next_QR = _components(next_row_NR, number)
    top_one, top_next = (of_layer.argmax(axis=1) for of_layer in logits)
    num_experts, (dimensions, hidden_size) = logits[0].shape[1], first.visible_RD.shape
    shares_E, next_shares_E = (np.bincount(top, minlength=num_experts) / len(top) for top in (top_one, top_next))
    spread_row = _unless_rounding(float(row_NR.var(axis=0).sum()), float((row_NR**2).sum(axis=1).mean()))
    step_row = float(((next_row_NR - row_NR) ** 2).sum(axis=1).mean())
    common = float(np.linalg.norm((next_row_NR - row_NR).mean(axis=0)))
    predicted, retained = _predicted(logits, top_one, seed) if shares_router else (None, None)
    return Drift(
        shares_router=shares_router,
        router_overlap=subspace_overlap(first.visible_RD, second.visible_RD),
        router_overlap_null=max(dimensions, len(second.visible_RD)) / hidden_size,
        num_components=number,
        seen_overlap=subspace_overlap(components_QR, next_QR),
        seen_overlap_null=number / dimensions,
        step_row=math.sqrt(step_row / spread_row) if spread_row else None,
        step_row_common=common / math.sqrt(spread_row) if spread_row else None,
        step_null=sums.unseen(step_row, spread_row) if dimensions < hidden_size else None,
        agreement=float((top_one == top_next).mean()),
        predicted_agreement=predicted,
        retained=retained,
        agreement_null=float(shares_E @ next_shares_E),
    )


class _StepSums:
    """States and steps of all tokens, read chunk by chunk."""

    def __init__(self, states: tuple[NDArray[np.floating], NDArray[np.floating]], router: RouterMap) -> None:
        number, hidden_size = states[0].shape
        self.seen = (np.empty((number, len(router.visible_RD))), np.empty((number, len(router.visible_RD))))
        """What the router sees of both layers' states, [N, R]."""
        self._step, square, sum_D = 0.0, 0.0, np.zeros(hidden_size)
        rows = max(1, _CELLS_PER_CHUNK // hidden_size)
        for start in range(0, number, rows):
            at = slice(start, start + rows)
            one_ND, other_ND = (of_layer[at].astype(np.float64) for of_layer in states)
            for seen_NR, x_ND in zip(self.seen, (one_ND, other_ND), strict=True):
                seen_NR[at] = x_ND @ router.visible_RD.T
            self._step += float(((other_ND - one_ND) ** 2).sum()) / number
            square += float((one_ND**2).sum()) / number
            sum_D += one_ND.sum(axis=0)
        self._spread = square - float(((sum_D / number) ** 2).sum())

    def unseen(self, step_row: float, spread_row: float) -> float | None:
        """RMS step over RMS spread outside of the row space, whose mean squares are given; None without spread."""
        spread = self._spread - spread_row
        return math.sqrt(max(0.0, self._step - step_row) / spread) if spread > 1e-9 * self._spread else None


def subspace_overlap(one: Matrix, other: Matrix) -> float:
    """Mean squared cosine of the principal angles between two subspaces, given by orthonormal rows.

    Of different dimensions, the smaller one counts: 1 if it lies in the larger one.
    """
    return float(((one @ other.T) ** 2).sum() / min(len(one), len(other)))


def _unless_rounding(variance: float, square: float) -> float:
    """A variance; 0 where it is no more than rounding of mean squares."""
    return variance if variance > 1e-12 * square else 0.0


def _components(x_NR: NDArray[np.floating], number: int | None = None) -> Matrix:
    """The first principal components, orthonormal rows; without a number the fewest that hold 90% of the variance."""
    centred_NR = x_NR - x_NR.mean(axis=0)
    squares_R, vectors_RR = np.linalg.eigh(centred_NR.T @ centred_NR)
    if number is None:
        shares_R = np.cumsum(squares_R[::-1]) / max(squares_R.sum(), np.finfo(float).tiny)
        number = int(np.searchsorted(shares_R, _ENERGY)) + 1
    return np.asarray(vectors_RR[:, ::-1][:, :number].T, dtype=np.float64)


def _predicted(
    logits: tuple[NDArray[np.floating], NDArray[np.floating]], top_one_N: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    """Agreement where rests are exchanged, and the slope."""
    one_NE, other_NE = (of_layer - of_layer.mean(axis=1, keepdims=True) for of_layer in logits)
    spread_NE = one_NE - one_NE.mean(axis=0)
    square = float((spread_NE**2).sum())
    retained = float((spread_NE * (other_NE - other_NE.mean(axis=0))).sum()) / square if square else 0.0
    order_N = np.random.default_rng(seed).permutation(len(top_one_N))
    predicted_NE = retained * one_NE + (other_NE - retained * one_NE)[order_N]
    return float((predicted_NE.argmax(axis=1) == top_one_N).mean()), retained
