"""Probes in planted cases, and their fit against scikit-like closed forms."""

# Shapes: N tokens, D hidden, C classes.

from collections.abc import Iterable

import numpy as np
import pytest

from pathmoe_eval.geometry.probes import PARTS, ProbeChunk, Probes, probe
from pathmoe_eval.geometry.router_map import linear_map

WEIGHT = np.concatenate([np.random.default_rng(1).normal(size=(5, 4)), np.zeros((5, 6))], axis=1)


def probed(num_chunks: int = 3, seed: int = 0, num_tokens: int = 4000) -> Probes:
    """The expert is decided in the row space, the token outside of it, and `noise` nowhere."""
    rng = np.random.default_rng(seed)
    token_N = rng.integers(6, size=num_tokens)
    states_ND = rng.normal(size=(num_tokens, 10)) + 1
    states_ND[np.arange(num_tokens), 4 + token_N] += 9
    classes = {
        "expert": (states_ND @ WEIGHT.T).argmax(axis=1),
        "token": np.where(rng.random(num_tokens) < 0.1, -1, token_N),
        "noise": rng.choice(3, size=num_tokens, p=[0.6, 0.2, 0.2]),
    }
    document_N = np.arange(num_tokens) * 20 // num_tokens

    def chunks() -> Iterable[ProbeChunk]:
        for rows in np.array_split(np.arange(num_tokens), num_chunks):
            of_rows = {name: class_N[rows] for name, class_N in classes.items()}
            yield ProbeChunk(states_ND=states_ND[rows], classes=of_rows, document_N=document_N[rows])

    return probe(chunks, {"expert": 5, "token": 6, "noise": 3}, linear_map(WEIGHT))


def test_each_part_tells_what_lies_in_it() -> None:
    found = probed()
    accuracy = {name: {part: one.accuracy for part, one in of.items()} for name, of in found.accuracy.items()}
    assert found.dimensions == {"control": 4, "content": 6, "full": 10, "random": 4}
    assert accuracy["expert"]["control"] > 0.8
    assert accuracy["expert"]["content"] == pytest.approx(found.most_frequent["expert"], abs=0.05)
    assert accuracy["token"]["content"] > 0.98
    assert accuracy["token"]["control"] == pytest.approx(1 / 6, abs=0.04)
    assert 0.3 < accuracy["token"]["random"] < accuracy["token"]["content"]
    for part in PARTS:
        assert accuracy["noise"][part] == pytest.approx(0.6, abs=0.05)
    low, high = found.accuracy["expert"]["control"].interval or (0, 0)
    assert low < accuracy["expert"]["control"] < high < low + 0.1


def test_tokens_without_a_class_are_neither_fitted_nor_tested() -> None:
    found = probed()
    assert found.num_tokens["expert"] == 2000 and found.num_tokens["token"] == pytest.approx(1800, abs=60)


def test_chunks_change_nothing() -> None:
    assert probed(num_chunks=1) == probed(num_chunks=7)


def test_one_document_is_not_enough() -> None:
    chunk = ProbeChunk(states_ND=np.ones((4, 10)), classes={"a": np.zeros(4, int)}, document_N=np.zeros(4, int))
    with pytest.raises(ValueError, match=r"^--data \(no tested token\) must hold at least 2 documents"):
        probe(lambda: [chunk], {"a": 2}, linear_map(WEIGHT))


def test_a_probe_is_the_ridge_regression_of_all_tokens_at_once() -> None:
    rng = np.random.default_rng(3)
    states_ND, class_N = rng.normal(size=(60, 10)) + 2, rng.integers(3, size=60)
    document_N = np.arange(60) % 2
    chunk = ProbeChunk(states_ND=states_ND, classes={"a": class_N}, document_N=document_N)
    found = probe(lambda: [chunk], {"a": 3}, linear_map(WEIGHT))
    fitted, tested = (states_ND[document_N == side] for side in (0, 1))
    features, indicators = np.c_[fitted, np.ones(30)], np.eye(3)[class_N[::2]]
    ridge = 1e-3 * (fitted**2).sum() / 10
    penalty = np.diag([ridge] * 10 + [0.0])
    weights = np.linalg.solve(features.T @ features + penalty, features.T @ indicators)
    expected = ((np.c_[tested, np.ones(30)] @ weights).argmax(axis=1) == class_N[1::2]).mean()
    assert found.accuracy["a"]["full"].accuracy == pytest.approx(expected)
