"""What can be read off the part of a hidden state that its router sees (control) and off the rest (content).

"Polysemantic Experts, Monosemantic Paths" (arXiv 2604.17837) splits states so and probes both parts. The probe is
multinomial logistic regression with a ridge (our choice), since what a linear router decides is a case of it. It is
fitted in passes over the states: the Hessian of its loss is at most half the Gram matrix of the features (Boehning
1992), which is the same in every pass, so that a pass needs sums over tokens alone and no step size.
"""

# Shapes: N tokens, D hidden, F features, C classes, R visible dimensions, M documents.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.geometry.router_map import Matrix, RouterMap

_RIDGE = 1e-4
"""Of the mean variance of the features."""
_NUM_PASSES = 40

PARTS = ("control", "content", "random")


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbeChunk:
    """States of consecutive tokens with the classes that are to be read off them; -1 for tokens without a class."""

    states_ND: NDArray[np.floating]
    classes: dict[str, NDArray[np.int64]]
    """[N] by the name of what they are."""
    document_N: NDArray[np.int64]
    is_fitted_N: NDArray[np.bool_]
    """Tokens of the documents that the probe is fitted on; the others are tested."""


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
    """Of each part in `PARTS`: control, the router's row space; content, the rest; random, as many directions as
    control, drawn at random, which says what so many tell of anything."""
    accuracy: dict[str, dict[str, Probed]]
    """By class and part."""
    most_frequent: dict[str, float]
    """By class: the share of the tokens with the class that was most frequent in fitting, which is the baseline."""
    num_tokens: dict[str, int]
    """By class: tokens that were tested."""


def probe(
    chunks: Callable[[], Iterable[ProbeChunk]], num_classes: dict[str, int], router: RouterMap, seed: int = 0
) -> Probes:
    """Fit on some documents, test on the others, in passes over the chunks.

    Args:
        chunks: begins a pass.
        num_classes: C, by name.
        router: of the layer.
        seed: of the random directions.

    Raises:
        ValueError: no token with a class on one of the sides.
    """
    mean_D, gram_DD, counts = _sums(chunks(), num_classes, router.visible_RD.shape[1])
    if not all(of_class.any() for of_class in counts.values()):
        raise ValueError("--data (no fitted token) must hold at least 2 documents with a class; give more documents")
    control_RD = router.visible_RD
    parts = {
        "control": _Part(control_RD, mean_D, gram_DD),
        "content": _Part(control_RD, mean_D, gram_DD, is_complement=True),
        "random": _Part(_random_rows(control_RD.shape, seed), mean_D, gram_DD),
    }
    probes = {(name, part): _Probe(parts[part], number) for name, number in num_classes.items() for part in PARTS}
    for _ in range(_NUM_PASSES):
        for chunk in chunks():
            rows = np.flatnonzero(chunk.is_fitted_N)
            features = {name: part.features(chunk.states_ND[rows]) for name, part in parts.items()}
            for (name, part), of_one in probes.items():
                of_one.see(features[part], chunk.classes[name][rows])
        for of_one in probes.values():
            of_one.step()
    commonest = {name: int(of_class.argmax()) for name, of_class in counts.items()}
    return _tested(chunks(), parts, probes, commonest)


def _random_rows(shape: tuple[int, ...], seed: int) -> Matrix:
    """Orthonormal rows of random directions."""
    orthonormal_DR, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=shape[::-1]))
    return np.asarray(orthonormal_DR.T)


def _sums(
    chunks: Iterable[ProbeChunk], num_classes: Mapping[str, int], hidden_size: int
) -> tuple[NDArray[np.float64], Matrix, dict[str, NDArray[np.int64]]]:
    """Mean and centred Gram matrix of the fitted states, and how many of them have each class."""
    number, sum_D, gram_DD = 0, np.zeros(hidden_size), np.zeros((hidden_size, hidden_size))
    counts = {name: np.zeros(of_class, dtype=np.int64) for name, of_class in num_classes.items()}
    for chunk in chunks:
        states_ND = chunk.states_ND[chunk.is_fitted_N].astype(np.float64)
        number += len(states_ND)
        sum_D += states_ND.sum(axis=0)
        gram_DD += states_ND.T @ states_ND
        for name, class_N in chunk.classes.items():
            fitted_N = class_N[chunk.is_fitted_N]
            counts[name] += np.bincount(fitted_N[fitted_N >= 0], minlength=num_classes[name])
    mean_D = sum_D / max(1, number)
    return mean_D, gram_DD - number * np.outer(mean_D, mean_D), counts


class _Part:
    """A part of the state as features, and the step that its Gram matrix allows."""

    def __init__(
        self, basis_RD: Matrix, mean_D: NDArray[np.float64], gram_DD: Matrix, *, is_complement: bool = False
    ) -> None:
        self._basis_RD, self._mean_D, self._is_complement = basis_RD, mean_D, is_complement
        hidden_size = basis_RD.shape[1]
        self.dimensions = hidden_size - len(basis_RD) if is_complement else len(basis_RD)
        # Of the complement the features are states, so that it needs no basis of its own, which would be large.
        projection = np.eye(hidden_size) - basis_RD.T @ basis_RD if is_complement else basis_RD
        gram_FF = projection @ gram_DD @ projection.T
        self.ridge = _RIDGE * float(np.trace(gram_FF)) / max(1, self.dimensions) or 1.0
        self.inverse_FF = np.linalg.inv(gram_FF / 2 + self.ridge * np.eye(len(gram_FF))).astype(np.float32)

    def features(self, states_ND: NDArray[np.floating]) -> NDArray[np.float32]:
        """[N, F]: centred coordinates of the part, of the complement the states without the rest."""
        centred_ND = (states_ND - self._mean_D).astype(np.float32)
        basis_RD = self._basis_RD.astype(np.float32)
        seen_NR = centred_ND @ basis_RD.T
        return np.asarray(centred_ND - seen_NR @ basis_RD if self._is_complement else seen_NR)


class _Probe:
    """Logistic regression on a part, climbed by accelerated steps (Nesterov's) of the bounded Hessian."""

    def __init__(self, part: _Part, num_classes: int) -> None:
        self._part, self._passes = part, 0
        size = len(part.inverse_FF)
        self.weight_FC: NDArray[np.float32] = np.zeros((size, num_classes), dtype=np.float32)
        self.bias_C: NDArray[np.float32] = np.zeros(num_classes, dtype=np.float32)
        # Where the slope is taken: beyond the last step, by a share of it.
        self._ahead_FC, self._ahead_C = self.weight_FC, self.bias_C
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._slope_FC, self._slope_C = np.zeros_like(self.weight_FC), np.zeros_like(self.bias_C)
        self._number = 0

    def see(self, features_NF: NDArray[np.float32], class_N: NDArray[np.int64]) -> None:
        """Add the slope of the log-likelihood of some tokens."""
        has_class_N = class_N >= 0
        features_NF, class_N = features_NF[has_class_N], class_N[has_class_N]
        error_NC = -_softmax(features_NF @ self._ahead_FC + self._ahead_C)
        error_NC[np.arange(len(class_N)), class_N] += 1
        self._slope_FC += features_NF.T @ error_NC
        self._slope_C += error_NC.sum(axis=0)
        self._number += len(class_N)

    def step(self) -> None:
        """End a pass."""
        self._passes += 1
        weight_FC = self._ahead_FC + self._part.inverse_FF @ (self._slope_FC - self._part.ridge * self._ahead_FC)
        bias_C = self._ahead_C + self._slope_C * np.float32(2 / self._number)
        share = (self._passes - 1) / (self._passes + 2)
        self._ahead_FC = weight_FC + np.float32(share) * (weight_FC - self.weight_FC)
        self._ahead_C = bias_C + np.float32(share) * (bias_C - self.bias_C)
        self.weight_FC, self.bias_C = weight_FC, bias_C
        self._begin_pass()

    def guess(self, features_NF: NDArray[np.float32]) -> NDArray[np.int64]:
        """The most probable class of each token."""
        return np.asarray((features_NF @ self.weight_FC + self.bias_C).argmax(axis=1))


def _softmax(logits_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(exponentials_NC / exponentials_NC.sum(axis=1, keepdims=True))


def _tested(
    chunks: Iterable[ProbeChunk],
    parts: Mapping[str, _Part],
    probes: Mapping[tuple[str, str], _Probe],
    commonest: Mapping[str, int],
) -> Probes:
    right: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    for chunk in chunks:
        rows = np.flatnonzero(~chunk.is_fitted_N)
        document_N = chunk.document_N[rows]
        features = {name: part.features(chunk.states_ND[rows]) for name, part in parts.items()}
        for name, class_N in chunk.classes.items():
            wanted_N = class_N[rows]
            guesses = {part: probes[name, part].guess(features[part]) for part in PARTS}
            guesses["most frequent"] = np.full(len(wanted_N), commonest[name])
            has_class_N = wanted_N >= 0
            for part, guess_N in guesses.items():
                columns = np.stack([document_N, guess_N == wanted_N], axis=1)[has_class_N]
                right.setdefault((name, part), []).append(columns)
    found = {key: _accuracy(np.concatenate(columns)) for key, columns in right.items()}
    if not found or any(number == 0 for _, number in found.values()):
        raise ValueError("--data (no tested token) must hold at least 2 documents with a class; give more documents")
    return Probes(
        dimensions={name: part.dimensions for name, part in parts.items()},
        accuracy={name: {part: found[name, part][0] for part in PARTS} for name in commonest},
        most_frequent={name: found[name, "most frequent"][0].accuracy for name in commonest},
        num_tokens={name: found[name, "most frequent"][1] for name in commonest},
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
