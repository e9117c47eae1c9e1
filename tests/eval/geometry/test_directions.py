"""The shared direction and the alignment of routers: planted cases, sums over all tokens, random routers."""

# Shapes: N tokens, D hidden, E experts, V directions.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathmoe_eval.geometry.directions import alignment, shared_direction
from pathmoe_eval.geometry.moments import SingularDirections, singular_directions
from pathmoe_eval.geometry.router_map import centred
from tests.eval.geometry.conftest import random_rotation
from tests.eval.geometry.test_moments import moments_of


def directions_of(states_ND: NDArray[np.floating]) -> SingularDirections:
    return singular_directions(moments_of(states_ND))


@given(st.integers(3, 30), st.integers(2, 8), st.integers(2, 6), st.integers(0, 1000))
def test_shares_are_those_of_states_and_logits(num_tokens: int, size: int, num_experts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states_ND = rng.normal(size=(num_tokens, size)) + 2 * rng.normal(size=size)
    weight_ED = rng.normal(size=(num_experts, size))
    found = shared_direction(directions_of(states_ND), centred(weight_ED))
    _, _, rows = np.linalg.svd(states_ND, full_matrices=False)
    along_ND = np.outer(states_ND @ rows[0], rows[0])
    logits_NE, logits_along_NE = (
        logits - logits.mean(axis=1, keepdims=True) for logits in (states_ND @ weight_ED.T, along_ND @ weight_ED.T)
    )
    assert found.state_energy == pytest.approx((along_ND**2).sum() / (states_ND**2).sum(), rel=1e-6)
    assert found.logit_energy == pytest.approx((logits_along_NE**2).sum() / (logits_NE**2).sum(), rel=1e-4)
    for share, all_of in ((found.mean_state_energy, states_ND), (found.mean_logit_energy, logits_NE)):
        # Total variance is what centring leaves.
        assert share == pytest.approx(1 - (all_of.var(axis=0) * len(all_of)).sum() / (all_of**2).sum(), rel=1e-6)
    mean_D = states_ND.mean(axis=0)
    assert found.mean_cosine == pytest.approx(abs(rows[0] @ mean_D) / np.linalg.norm(mean_D), rel=1e-4)


def test_the_mean_need_not_be_the_first_direction() -> None:
    # Most of the energy lies along the first axis, where states cancel out; the mean lies along the second.
    states_ND = np.array([[5.0, 1.0, 0.0], [-5.0, 1.0, 0.0], [5.0, 1.0, 0.5], [-5.0, 1.0, -0.5]])
    blind_to_mean, only_mean = np.array([[1.0, 0, 0], [-1.0, 0, 0]]), np.array([[0, 1.0, 0], [0, -1.0, 0]])
    blind, only = (shared_direction(directions_of(states_ND), matrix) for matrix in (blind_to_mean, only_mean))
    assert blind.mean_cosine == pytest.approx(0, abs=1e-9)
    assert blind.mean_state_energy == pytest.approx(4 / (4 * 26 + 0.5))
    assert (blind.logit_energy, blind.mean_logit_energy) == (pytest.approx(1, rel=1e-3), pytest.approx(0, abs=1e-12))
    assert (only.logit_energy, only.mean_logit_energy) == (pytest.approx(0, abs=1e-3), pytest.approx(1))


def test_states_around_zero_have_no_mean_direction() -> None:
    found = shared_direction(directions_of(np.array([[1.0, 0.0], [-1.0, 0.0]])), np.array([[1.0, 0], [-1.0, 0]]))
    assert (found.mean_cosine, found.mean_state_energy, found.mean_logit_energy) == (None, 0.0, 0.0)


def test_a_router_orthogonal_to_the_shared_direction_does_not_see_it() -> None:
    rng = np.random.default_rng(0)
    states_ND = np.concatenate([np.full((60, 1), 5.0), rng.normal(size=(60, 3))], axis=1)
    directions = directions_of(states_ND)
    shared_D = directions.directions_VD[0]
    weight_ED = rng.normal(size=(5, 4))
    blind_ED = weight_ED - np.outer(weight_ED @ shared_D, shared_D)
    assert shared_direction(directions, centred(blind_ED)).logit_energy == pytest.approx(0, abs=1e-12)
    only_ED = np.outer([1.0, -1.0, 0.5], shared_D)
    assert shared_direction(directions, centred(only_ED)).logit_energy == pytest.approx(1)
    # A router that gives all experts the same share of it sees nothing of it either.
    same_ED = blind_ED + 3 * shared_D
    assert shared_direction(directions, centred(same_ED)).logit_energy == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("matrix", [None, np.zeros((3, 4)), np.full((3, 4), 0.1)])
def test_without_logits_there_is_no_share(matrix: NDArray[np.float64] | None) -> None:
    directions = directions_of(np.random.default_rng(0).normal(size=(9, 4)))
    found = shared_direction(directions, None if matrix is None else centred(matrix))
    assert found.logit_energy is None and found.mean_logit_energy is None and found.state_energy > 0.25


def test_random_routers_are_aligned_as_by_chance() -> None:
    rng = np.random.default_rng(0)
    states_ND = rng.normal(size=(200, 6)) * np.geomspace(1, 0.1, 6)
    directions = directions_of(states_ND)
    found = [alignment(directions, centred(rng.normal(size=(8, 6)))) for _ in range(800)]
    ratios = np.array([one.ratio for one in found if one is not None])
    assert ratios.mean(axis=0) == pytest.approx(1, abs=0.05)
    assert np.mean([one.total for one in found if one is not None]) == pytest.approx(1, abs=0.05)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 1000))
def test_ratios_average_to_one_over_a_full_set_of_directions(size: int, num_experts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states_ND = rng.normal(size=(40, size))
    matrix = centred(rng.normal(size=(num_experts, size)))
    found = alignment(directions_of(states_ND), matrix)
    assert found is not None
    assert np.mean(found.ratio) == pytest.approx(1)
    energy = np.array(found.singular_value) ** 2
    assert found.total == pytest.approx(np.average(found.ratio, weights=energy))
    assert energy.sum() == pytest.approx((states_ND**2).sum(axis=1).mean())
    logits_NE = states_ND @ matrix.T
    assert found.total == pytest.approx((logits_NE**2).sum() * size / ((matrix**2).sum() * (states_ND**2).sum()))


@given(st.integers(2, 6), st.integers(0, 1000))
def test_a_rotation_of_the_hidden_space_changes_nothing(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states_ND, matrix = rng.normal(size=(40, size)) + 1, centred(rng.normal(size=(5, size)))
    rotation_DD = random_rotation(size, seed)
    plain, rotated = (
        (shared_direction(directions_of(states), weight).logit_energy, alignment(directions_of(states), weight))
        for states, weight in ((states_ND, matrix), (states_ND @ rotation_DD, matrix @ rotation_DD))
    )
    assert rotated[0] == pytest.approx(plain[0], rel=1e-6)
    assert plain[1] is not None and rotated[1] is not None
    assert rotated[1].total == pytest.approx(plain[1].total)


def test_equal_rows_have_no_alignment() -> None:
    assert alignment(directions_of(np.eye(3)), centred(np.full((4, 3), 0.1))) is None
