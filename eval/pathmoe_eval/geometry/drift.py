"""From one MoE layer to the next: what both routers see, how far a state moves there, and the agreement that follows.

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
    """Two neighbouring layers, the first one's router taken for what is seen."""

    shares_router: bool
    router_overlap: float
    """Mean squared cosine of the principal angles between the subspaces that the two routers see: 1 if they see the
    same."""
    router_overlap_null: float
    """The same of random subspaces of these dimensions: the larger one's over D."""
    num_components: int
    """Principal components that hold 90% of the variance of what the first layer sees."""
    seen_overlap: float
    """Mean squared cosine of the principal angles between those components and as many of the next layer, both in the
    first router's row space."""
    seen_overlap_null: float
    """The same of random subspaces: components over visible dimensions."""
    step_row: float
    """RMS step of a state from layer to layer in the row space, over the RMS spread of states around their mean there;
    the mean step, which all tokens share, included."""
    step_row_common: float
    """The mean step alone, in the same unit."""
    step_null: float | None
    """The same as `step_row` for what the router does not see; None where it sees all, or all that differs."""
    agreement: float
    """Share of tokens whose highest logit is of the same expert in both layers."""
    predicted_agreement: float | None
    """The same where each token takes the step, in logits, of another token: what the distributions of logits and of
    steps make of it if they know nothing of each other. None between routers that are not shared, whose steps have no
    meaning."""
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
    """Measure two neighbouring layers.

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
    components_QR, next_QR = (_components(x_NR) for x_NR in (row_NR, next_row_NR))
    number = len(components_QR)
    top_one, top_next = (of_layer.argmax(axis=1) for of_layer in logits)
    num_experts, (dimensions, hidden_size) = logits[0].shape[1], first.visible_RD.shape
    shares_E, next_shares_E = (np.bincount(top, minlength=num_experts) / len(top) for top in (top_one, top_next))
    spread_row = float((row_NR.var(axis=0)).sum())
    step_row = float(((next_row_NR - row_NR) ** 2).sum(axis=1).mean())
    return Drift(
        shares_router=shares_router,
        router_overlap=subspace_overlap(first.visible_RD, second.visible_RD),
        router_overlap_null=max(dimensions, len(second.visible_RD)) / hidden_size,
        num_components=number,
        seen_overlap=subspace_overlap(components_QR, next_QR[:number]),
        seen_overlap_null=max(number, len(next_QR[:number])) / dimensions,
        step_row=math.sqrt(step_row / spread_row),
        step_row_common=float(np.linalg.norm((next_row_NR - row_NR).mean(axis=0))) / math.sqrt(spread_row),
        step_null=sums.unseen(step_row, spread_row) if dimensions < hidden_size else None,
        agreement=float((top_one == top_next).mean()),
        predicted_agreement=_predicted(logits, top_one, seed) if shares_router else None,
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


def _components(x_NR: NDArray[np.floating]) -> Matrix:
    """Principal components, orthonormal rows, the fewest that hold 90% of the variance."""
    centred_NR = x_NR - x_NR.mean(axis=0)
    squares_R, vectors_RR = np.linalg.eigh(centred_NR.T @ centred_NR)
    shares_R = np.cumsum(squares_R[::-1]) / max(squares_R.sum(), np.finfo(float).tiny)
    return np.asarray(vectors_RR[:, ::-1][:, : int(np.searchsorted(shares_R, _ENERGY)) + 1].T, dtype=np.float64)


def _predicted(
    logits: tuple[NDArray[np.floating], NDArray[np.floating]], top_one_N: NDArray[np.int64], seed: int
) -> float:
    order_N = np.random.default_rng(seed).permutation(len(top_one_N))
    stepped_NE = logits[0] + (logits[1] - logits[0])[order_N]
    return float((stepped_NE.argmax(axis=1) == top_one_N).mean())
