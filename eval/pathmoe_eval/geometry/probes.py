"""What can be read off the part of a hidden state that its router sees (control) and off the rest (content).

"Polysemantic Experts, Monosemantic Paths" (arXiv 2604.17837) splits states so and probes both parts; the probe, linear
least squares on one column a class with a ridge, is our choice: it needs sums over tokens alone.
"""

# Shapes: N tokens, D hidden, F features, C classes, R visible dimensions, M documents.

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.geometry.router_map import Matrix, RouterMap

_RIDGE = 1e-3
"""Of the mean variance of the features."""

PARTS = ("control", "content", "full", "random")


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbeChunk:
    """States of consecutive tokens with the classes that are to be read off them; -1 for tokens without a class."""

    states_ND: NDArray[np.floating]
    classes: dict[str, NDArray[np.int64]]
    """[N] by the name of what they are."""
    document_N: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """How well a part of the state tells a class, on documents that the probe was not fitted to."""

    accuracy: float
    interval: tuple[float, float] | None
    """95% percentile interval over the draw of documents; None for fewer than two."""


@dataclass(frozen=True, kw_only=True)
class Probes:
    """All parts and classes of one layer."""

    dimensions: dict[str, int]
    """Of each part in `PARTS`: control, the router's row space; content, the rest; full, the state; random, as many
    directions as control, drawn at random, which says what so many tell of anything."""
    accuracy: dict[str, dict[str, Probed]]
    """By class and part."""
    most_frequent: dict[str, float]
    """By class: the share of the tokens with the class that was most frequent in fitting, which is the baseline."""
    num_tokens: dict[str, int]
    """By class: tokens that were tested."""


def probe(
    chunks: Callable[[], Iterable[ProbeChunk]], num_classes: dict[str, int], router: RouterMap, seed: int = 0
) -> Probes:
    """Fit on the documents of even numbers, test on the others, in two passes.

    Args:
        chunks: begins a pass.
        num_classes: C, by name.
        router: of the layer.
        seed: of the random directions.

    Raises:
        ValueError: no token with a class on one of the sides.
    """
    hidden_size = router.visible_RD.shape[1]
    parts = _parts(router, hidden_size, seed)
    # One more feature, always 1.
    gram = np.zeros((hidden_size + 1, hidden_size + 1))
    moments = {name: np.zeros((hidden_size + 1, number)) for name, number in num_classes.items()}
    for chunk in chunks():
        is_fitted_N = chunk.document_N % 2 == 0
        features_NF = _with_one(chunk.states_ND[is_fitted_N])
        gram += features_NF.T @ features_NF
        for name, class_N in chunk.classes.items():
            _add_moments(moments[name], features_NF, class_N[is_fitted_N])
    weights = {
        name: {part: _fitted(gram, moment, basis) for part, basis in parts.items()} for name, moment in moments.items()
    }
    return _tested(chunks(), weights, moments, {part: len(basis) for part, basis in parts.items()})


def _parts(router: RouterMap, hidden_size: int, seed: int) -> dict[str, Matrix]:
    """Orthonormal rows of each part."""
    control_RD = router.visible_RD
    complement, _ = np.linalg.qr(np.concatenate([control_RD, np.eye(hidden_size)]).T)
    random, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(hidden_size, len(control_RD))))
    return {
        "control": control_RD,
        "content": complement[:, len(control_RD) :].T,
        "full": np.eye(hidden_size),
        "random": random.T,
    }


def _with_one(states_ND: NDArray[np.floating]) -> Matrix:
    return np.concatenate([states_ND.astype(np.float64), np.ones((len(states_ND), 1))], axis=1)


def _add_moments(moment_FC: Matrix, features_NF: Matrix, class_N: NDArray[np.int64]) -> None:
    """Sum of the features of each class, in place."""
    order_N = np.argsort(class_N, kind="stable")
    order_N = order_N[class_N[order_N] >= 0]
    present_C, starts_C = np.unique(class_N[order_N], return_index=True)
    if len(present_C):
        moment_FC[:, present_C] += np.add.reduceat(features_NF[order_N], starts_C, axis=0).T


def _fitted(gram_FF: Matrix, moment_FC: Matrix, basis: Matrix) -> Matrix:
    """Weights [F, C] of the states: ridge regression of indicators of classes on coordinates in a basis."""
    whole = np.zeros((len(basis) + 1, len(gram_FF)))
    whole[:-1, :-1], whole[-1, -1] = basis, 1
    gram = whole @ gram_FF @ whole.T
    ridge = _RIDGE * np.trace(gram[:-1, :-1]) / max(1, len(basis))
    penalty = np.diag([*[ridge] * len(basis), 0.0])
    return np.asarray(whole.T @ np.linalg.solve(gram + penalty, whole @ moment_FC))


def _tested(
    chunks: Iterable[ProbeChunk],
    weights: dict[str, dict[str, Matrix]],
    moments: dict[str, Matrix],
    dimensions: dict[str, int],
) -> Probes:
    # What stands in the row of the feature that is always 1 are counts.
    commonest = {name: int(moment_FC[-1].argmax()) for name, moment_FC in moments.items()}
    right: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    for chunk in chunks:
        is_tested_N = chunk.document_N % 2 == 1
        features_NF, document_N = _with_one(chunk.states_ND[is_tested_N]), chunk.document_N[is_tested_N]
        for name, class_N in chunk.classes.items():
            wanted_N = class_N[is_tested_N]
            guesses = {part: (features_NF @ of_part).argmax(axis=1) for part, of_part in weights[name].items()}
            guesses["most frequent"] = np.full(len(wanted_N), commonest[name])
            has_class_N = wanted_N >= 0
            for part, guess_N in guesses.items():
                columns = np.stack([document_N, guess_N == wanted_N], axis=1)[has_class_N]
                right.setdefault((name, part), []).append(columns)
    found = {key: _accuracy(np.concatenate(columns)) for key, columns in right.items()}
    if not found or any(number == 0 for _, number in found.values()):
        raise ValueError("--data (no tested token) must hold at least 2 documents with a class; give more documents")
    return Probes(
        dimensions=dimensions,
        accuracy={name: {part: found[name, part][0] for part in PARTS} for name in weights},
        most_frequent={name: found[name, "most frequent"][0].accuracy for name in weights},
        num_tokens={name: found[name, "most frequent"][1] for name in weights},
    )


def _accuracy(columns: NDArray[np.int64]) -> tuple[Probed, int]:
    document_N, is_right_N = columns.T
    _, index_N = np.unique(document_N, return_inverse=True)
    total_M = np.bincount(index_N)
    right_M = np.bincount(index_N, weights=is_right_N)
    if not len(document_N):
        return Probed(accuracy=0.0, interval=None), 0
    interval = Bootstrap(num_resamples=1000, seed=0, confidence=0.95).interval(
        (right_M, total_M), lambda right, total, axis: right.sum(axis=axis) / total.sum(axis=axis)
    )
    return Probed(accuracy=float(is_right_N.mean()), interval=interval), len(document_N)
