"""Drift between layers in planted cases, and the agreement that follows from it."""

# Shapes: N tokens, D hidden, E experts.

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from pathmoe_eval.geometry.drift import Drift, drift, subspace_overlap
from pathmoe_eval.geometry.router_map import linear_map
from tests.eval.geometry.conftest import random_rotation

RNG = np.random.default_rng(0)
WEIGHT = np.concatenate([RNG.normal(size=(5, 4)), np.zeros((5, 4))], axis=1)


def drift_of(states_ND: np.ndarray, step_ND: np.ndarray, weight_ED: np.ndarray = WEIGHT) -> Drift:
    following_ND, router = states_ND + step_ND, linear_map(weight_ED)
    return drift(
        (states_ND, following_ND), (states_ND @ weight_ED.T, following_ND @ weight_ED.T), (router, router),
        shares_router=True,
    )  # fmt: skip


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_overlap_is_that_of_principal_angles(one: int, other: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (np.linalg.qr(rng.normal(size=(6, size)))[0].T for size in (one, other))
    expected = np.mean(np.cos(subspace_angles(first.T, second.T)) ** 2)
    assert subspace_overlap(first, second) == pytest.approx(expected)
    rotation = random_rotation(6, seed)
    assert subspace_overlap(first @ rotation, second @ rotation) == pytest.approx(expected)


def test_random_subspaces_overlap_as_the_null_says() -> None:
    found = [subspace_overlap(*(np.linalg.qr(RNG.normal(size=(10, size)))[0].T for size in (3, 4))) for _ in range(500)]
    assert np.mean(found) == pytest.approx(4 / 10, abs=0.02)


def test_a_step_that_the_router_does_not_see_keeps_every_expert() -> None:
    states_ND = RNG.normal(size=(400, 8))
    step_ND = np.concatenate([np.zeros((400, 4)), 5 * RNG.normal(size=(400, 4))], axis=1)
    found = drift_of(states_ND, step_ND)
    assert (found.agreement, found.predicted_agreement) == (1.0, 1.0)
    assert found.step_row == pytest.approx(0, abs=1e-9) and found.step_null is not None and found.step_null > 3
    assert found.router_overlap == pytest.approx(1) and found.seen_overlap == pytest.approx(1)
    assert found.router_overlap_null == 0.5


@pytest.mark.parametrize("angle", [0.0, np.pi / 3, np.pi / 2])
def test_components_that_turn_overlap_by_their_angle(angle: float) -> None:
    """All that a router sees varies along one line, which turns within the row space from layer to layer."""
    size_N = RNG.normal(size=500)
    states_ND, following_ND = (
        np.outer(size_N, [np.cos(turn), np.sin(turn), 0, 0, 0, 0, 0, 0]) for turn in (0.0, angle)
    )
    found = drift_of(states_ND, following_ND - states_ND)
    assert (found.num_components, found.seen_overlap_null) == (1, 0.25)
    assert found.seen_overlap == pytest.approx(np.cos(angle) ** 2, abs=1e-9)


@given(st.integers(0, 1000))
def test_a_rotation_of_the_hidden_space_changes_nothing(seed: int) -> None:
    rng, rotation_DD = np.random.default_rng(seed), random_rotation(8, seed)
    states_ND, step_ND = rng.normal(size=(60, 8)) * np.geomspace(1, 0.1, 8), 0.4 * rng.normal(size=(60, 8))
    plain = drift_of(states_ND, step_ND)
    rotated = drift_of(states_ND @ rotation_DD, step_ND @ rotation_DD, WEIGHT @ rotation_DD)
    assert asdict(rotated) == pytest.approx(asdict(plain), rel=1e-6)


def test_what_is_added_to_all_logits_of_a_token_changes_nothing() -> None:
    states_ND, step_ND = RNG.normal(size=(2, 50, 8))
    router, logits = linear_map(WEIGHT), (states_ND @ WEIGHT.T, (states_ND + step_ND) @ WEIGHT.T)
    moved = (logits[0] + RNG.normal(size=(50, 1)), logits[1] + RNG.normal(size=(50, 1)))
    states = (states_ND, states_ND + step_ND)
    plain, added = (drift(states, of_both, (router, router), shares_router=True) for of_both in (logits, moved))
    assert asdict(added) == pytest.approx(asdict(plain))


def test_a_step_of_all_tokens_alike_is_common() -> None:
    states_ND = RNG.normal(size=(400, 8))
    found = drift_of(states_ND, np.broadcast_to(WEIGHT[0], states_ND.shape))
    assert found.step_row == pytest.approx(found.step_row_common) and found.step_row > 0.3
    assert found.predicted_agreement == found.agreement, "all steps are the same"


def test_steps_that_know_nothing_of_the_token_are_predicted() -> None:
    states_ND = RNG.normal(size=(20_000, 8))
    found = drift_of(states_ND, 0.5 * RNG.normal(size=states_ND.shape))
    assert found.predicted_agreement == pytest.approx(found.agreement, abs=0.015)
    assert found.agreement_null + 0.1 < found.agreement < 0.9


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.8])
def test_states_that_keep_their_size_are_predicted(kept: float) -> None:
    states_ND = RNG.normal(size=(20_000, 8))
    following_ND = kept * states_ND + np.sqrt(1 - kept**2) * RNG.normal(size=states_ND.shape)
    found = drift_of(states_ND, following_ND - states_ND)
    assert found.predicted_agreement == pytest.approx(found.agreement, abs=0.015)
    assert found.retained == pytest.approx(kept, abs=0.02)


def test_growing_states_are_predicted() -> None:
    found = drift_of(RNG.normal(size=(5000, 8)), 0.8 * RNG.normal(size=(5000, 8)))
    assert found.retained == pytest.approx(1.0, abs=0.05)
    states_ND = RNG.normal(size=(5000, 8))
    found = drift_of(states_ND, 0.8 * states_ND)
    assert (found.agreement, found.predicted_agreement) == (1.0, 1.0) and found.retained == pytest.approx(1.8)


def test_steps_that_know_of_the_choice_agree_more_than_predicted() -> None:
    states_ND = RNG.normal(size=(5000, 8))
    chosen_N = (states_ND @ WEIGHT.T).argmax(axis=1)
    noise_ND = RNG.normal(size=states_ND.shape)
    found = drift_of(states_ND, WEIGHT[chosen_N] + noise_ND)
    assert found.predicted_agreement is not None and found.agreement > found.predicted_agreement + 0.05


def test_states_that_do_not_differ_have_no_spread() -> None:
    found = drift_of(np.ones((20, 8)), np.full((20, 8), 0.5))
    assert (found.step_row, found.step_row_common, found.step_null) == (None, None, None)
    assert (found.agreement, found.predicted_agreement, found.agreement_null) == (1.0, 1.0, 1.0)


def test_routers_that_see_other_things_do_not_overlap() -> None:
    states_ND, weights = RNG.normal(size=(100, 8)), (WEIGHT, WEIGHT[:, ::-1])
    logits = (states_ND @ weights[0].T, states_ND @ weights[1].T)
    routers = (linear_map(weights[0]), linear_map(weights[1]))
    found = drift((states_ND, states_ND), logits, routers, shares_router=False)
    assert found.router_overlap == pytest.approx(0, abs=1e-12) and not found.shares_router
    assert found.predicted_agreement is None


def test_a_router_that_sees_all_leaves_nothing() -> None:
    weight_ED = RNG.normal(size=(5, 4))
    assert drift_of(RNG.normal(size=(50, 4)), RNG.normal(size=(50, 4)), weight_ED).step_null is None


@given(st.integers(2, 30), st.integers(0, 1000))
def test_steps_are_those_of_the_definitions(num_tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states_ND, step_ND = rng.normal(size=(num_tokens, 8)) + 1, 0.4 * rng.normal(size=(num_tokens, 8)) + 0.2
    found, router = drift_of(states_ND, step_ND), linear_map(WEIGHT)

    def relative(one: np.ndarray, step: np.ndarray) -> float:
        spread = ((one - one.mean(axis=0)) ** 2).sum(axis=1).mean()
        return float(np.sqrt((step**2).sum(axis=1).mean() / spread))

    (row, null), (row_step, null_step) = router.split(states_ND), router.split(step_ND)
    assert found.step_row == pytest.approx(relative(row, row_step))
    assert found.step_null == pytest.approx(relative(null, null_step))
    mean_step = np.broadcast_to(row_step.mean(axis=0), row_step.shape)
    assert found.step_row_common == pytest.approx(relative(row, mean_step))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    states_ND, step_ND = RNG.normal(size=(40, 8)), RNG.normal(size=(40, 8))
    whole = drift_of(states_ND, step_ND)
    monkeypatch.setattr("pathmoe_eval.geometry.drift._CELLS_PER_CHUNK", 3 * 8)
    in_parts = drift_of(states_ND, step_ND)
    assert in_parts.step_null == pytest.approx(whole.step_null) and in_parts.agreement == whole.agreement
    assert in_parts.seen_overlap == pytest.approx(whole.seen_overlap)
