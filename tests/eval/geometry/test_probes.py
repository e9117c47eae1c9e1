"""Probes in planted cases, and their fit against scikit-learn's."""

# Shapes: N tokens, D hidden, F features, C classes, E experts, R visible dimensions.

from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pathmoe_eval.geometry.probes import PARTS, ProbeChunk, Probes, probe
from pathmoe_eval.geometry.router_map import linear_map
from tests.eval.geometry.conftest import random_rotation

WEIGHT = np.concatenate([np.random.default_rng(1).normal(size=(5, 4)), np.zeros((5, 6))], axis=1)


def probed(
    num_chunks: int = 3, seed: int = 0, num_tokens: int = 4000, rotation_DD: NDArray[np.float64] | None = None
) -> Probes:
    """The expert is decided in the row space, the token outside of it, and `noise` nowhere."""
    rotation_DD = np.eye(10) if rotation_DD is None else rotation_DD
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
            yield ProbeChunk(
                states_ND=states_ND[rows] @ rotation_DD,
                classes=of_rows,
                document_N=document_N[rows],
                is_fitted_N=document_N[rows] % 2 == 0,
            )

    return probe(chunks, {"expert": 5, "token": 6, "noise": 3}, linear_map(WEIGHT @ rotation_DD))


def test_a_rotation_of_the_hidden_space_changes_hardly_anything() -> None:
    plain, rotated = probed(), probed(rotation_DD=random_rotation(10, 0))
    for name, parts in plain.accuracy.items():
        for part in ("control", "content"):
            assert rotated.accuracy[name][part].accuracy == pytest.approx(parts[part].accuracy, abs=0.002)


def test_each_part_tells_what_lies_in_it() -> None:
    found = probed()
    accuracy = {name: {part: one.accuracy for part, one in of.items()} for name, of in found.accuracy.items()}
    assert found.dimensions == {"control": 4, "content": 6, "random": 4}
    assert accuracy["expert"]["control"] > 0.95
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


def test_chunks_change_hardly_anything() -> None:
    one, other = probed(num_chunks=1), probed(num_chunks=7)
    assert one.num_tokens == other.num_tokens and one.most_frequent == other.most_frequent
    for name, of_class in one.accuracy.items():
        for part, of_part in of_class.items():
            assert of_part.accuracy == pytest.approx(other.accuracy[name][part].accuracy, abs=0.002)


def test_one_document_is_not_enough() -> None:
    classes, document_N = {"a": np.zeros(4, int)}, np.zeros(4, int)
    for side, line in ((True, "no tested token"), (False, "no fitted token")):
        chunk = ProbeChunk(
            states_ND=np.ones((4, 10)), classes=classes, document_N=document_N, is_fitted_N=np.full(4, side)
        )
        with pytest.raises(ValueError, match=rf"^--data \({line}\) must hold at least 2 documents"):
            probe(partial(list, [chunk]), {"a": 2}, linear_map(WEIGHT))


def test_a_probe_is_the_logistic_regression_of_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathmoe_eval.geometry.probes._NUM_PASSES", 400)
    rng = np.random.default_rng(3)
    states_ND = rng.normal(size=(900, 10)) * np.geomspace(2, 0.3, 10) + 2
    class_N = (states_ND @ rng.normal(size=(10, 4)) + rng.gumbel(size=(900, 4))).argmax(axis=1)
    is_fitted_N = np.arange(900) % 3 > 0
    chunk = ProbeChunk(
        states_ND=states_ND, classes={"a": class_N}, document_N=np.arange(900) % 30, is_fitted_N=is_fitted_N
    )
    router = linear_map(WEIGHT)
    found = probe(lambda: [chunk], {"a": 4}, router)
    row_NR, rest_ND = router.split(states_ND)
    for part, features_NF, dimensions in (("control", row_NR, 4), ("content", rest_ND, 6)):
        centred_NF = features_NF - features_NF[is_fitted_N].mean(axis=0)
        ridge = 1e-4 * (centred_NF[is_fitted_N] ** 2).sum() / dimensions
        theirs = LogisticRegression(C=1 / ridge, tol=1e-8, max_iter=5000)
        theirs.fit(centred_NF[is_fitted_N], class_N[is_fitted_N])
        expected = theirs.score(centred_NF[~is_fitted_N], class_N[~is_fitted_N])
        assert found.accuracy["a"][part].accuracy == pytest.approx(expected, abs=0.011), part


def test_what_a_linear_router_decides_is_read_off_its_row_space() -> None:
    rng = np.random.default_rng(0)
    weight_ED = rng.normal(size=(16, 64))
    states_ND = (rng.normal(size=(6000, 64)) * np.geomspace(3, 0.1, 64) + 1).astype(np.float32)
    chunk = ProbeChunk(
        states_ND=states_ND,
        classes={"expert": (states_ND @ weight_ED.T).argmax(axis=1)},
        document_N=np.arange(6000) // 100,
        is_fitted_N=np.arange(6000) // 100 % 2 == 0,
    )
    found = probe(lambda: [chunk], {"expert": 16}, linear_map(weight_ED)).accuracy["expert"]
    assert found["control"].accuracy > 0.93
    assert found["control"].accuracy > found["content"].accuracy + 0.05
