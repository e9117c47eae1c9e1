"""Singular directions from moments, against numpy's SVD of all states at once."""

# Shapes: N tokens, D hidden, V directions.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathmoe_eval.geometry.moments import SingularDirections, StateMoments, singular_directions


def moments_of(states_ND: NDArray[np.floating], num_chunks: int = 1) -> StateMoments:
    moments = StateMoments(states_ND.shape[1])
    for chunk in np.array_split(states_ND, num_chunks):
        moments.update(chunk)
    return moments


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 5), st.integers(0, 1000))
def test_they_are_those_of_all_states(num_tokens: int, size: int, chunks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states_ND = rng.normal(size=(num_tokens, size)) * np.geomspace(1, 0.01, size) + rng.normal(size=size)
    found = singular_directions(moments_of(states_ND, chunks))
    _, values, directions = np.linalg.svd(states_ND, full_matrices=False)
    kept = len(found.values_V)
    # A Gram matrix squares singular values, and with them rounding.
    assert kept == (values**2 > size * np.finfo(float).eps * values[0] ** 2).sum()
    assert found.values_V == pytest.approx(values[:kept], rel=1e-5)
    assert found.energy_share_V == pytest.approx(values[:kept] ** 2 / (values**2).sum(), rel=1e-4)
    # Of either sign.
    cosines_V = np.abs((found.directions_VD * directions[:kept]).sum(axis=1))
    gaps = np.abs(np.diff(values[: kept + 1])) if kept < len(values) else np.append(np.diff(-values), values[-1])
    is_apart = np.minimum(gaps[:kept], np.append(np.inf, gaps[: kept - 1])) > 0.05 * values[0]
    assert cosines_V[is_apart] == pytest.approx(1, abs=1e-3)


def test_rank_one_states_have_one_direction() -> None:
    direction_D = np.array([0.6, 0.0, 0.8])
    found = singular_directions(moments_of(np.outer([1.0, -2.0, 2.0], direction_D)))
    assert found.values_V == pytest.approx([3.0])
    assert np.abs(found.directions_VD @ direction_D) == pytest.approx([1.0])
    assert found.energy_share_V.tolist() == [1.0]


@pytest.mark.parametrize("states", [np.zeros((0, 3)), np.zeros((4, 3))])
def test_nothing_has_no_direction(states: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"^states \(\d tokens\) must hold one that differs from zero"):
        singular_directions(moments_of(states))


@pytest.mark.parametrize(
    ("states", "line"),
    [
        (np.zeros((2, 4)), "states ([2, 4]) must be [tokens, 3]"),
        (np.array([[1.0, np.nan, 0.0]]), "states (not finite) must be finite; load the model in a wider dtype"),
    ],
)
def test_wrong_states_are_refused(states: NDArray[np.float64], line: str) -> None:
    with pytest.raises(ValueError) as error:
        StateMoments(3).update(states)
    assert str(error.value) == line


def test_directions_are_orthonormal() -> None:
    found: SingularDirections = singular_directions(moments_of(np.random.default_rng(0).normal(size=(50, 6))))
    assert found.directions_VD @ found.directions_VD.T == pytest.approx(np.eye(6), abs=1e-12)


def test_single_precision_invents_no_direction() -> None:
    rng = np.random.default_rng(1)
    few_ND = rng.normal(size=(20, 64)).astype(np.float32)
    assert len(singular_directions(moments_of(few_ND)).values_V) == 20
    falling_ND = (rng.normal(size=(500, 64)) * np.geomspace(1, 1e-4, 64)).astype(np.float32)
    assert len(singular_directions(moments_of(falling_ND)).values_V) == 64
