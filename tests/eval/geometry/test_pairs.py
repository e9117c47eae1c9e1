"""Distances and overlap of pairs, against the plain definitions."""

# Shapes: N tokens, P pairs, D hidden, E experts, K experts per token.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.geometry.pairs import draw_pairs, token_pairs
from tests.eval.geometry.conftest import layer_of, random_layer, random_rotation


@given(st.integers(2, 12), st.integers(1, 50), st.integers(0, 100))
def test_pairs_are_of_different_tokens_and_reproducible(num_tokens: int, num_pairs: int, seed: int) -> None:
    first_P, second_P = draw_pairs(num_tokens, num_pairs, seed)
    assert len(first_P) == len(second_P) == num_pairs and (first_P != second_P).all()
    assert min(first_P.min(), second_P.min()) >= 0 and max(first_P.max(), second_P.max()) < num_tokens
    for one, other in zip(draw_pairs(num_tokens, num_pairs, seed), (first_P, second_P), strict=True):
        assert (one == other).all()


def test_every_pair_is_as_likely() -> None:
    first_P, second_P = draw_pairs(4, 60_000, 0)
    counts = np.zeros((4, 4))
    np.add.at(counts, (first_P, second_P), 1)
    assert counts[~np.eye(4, dtype=bool)] == pytest.approx(5000, rel=0.06)


def test_one_token_has_no_pair() -> None:
    with pytest.raises(ValueError, match=r"^--data \(1 tokens\) must hold at least 2 tokens; give longer text$"):
        draw_pairs(1, 5, 0)


@given(st.integers(2, 12), st.integers(2, 9), st.integers(3, 6), st.integers(0, 1000))
def test_distances_are_root_mean_squares(num_tokens: int, size: int, num_experts: int, seed: int) -> None:
    layer = random_layer(num_tokens, size, num_experts, seed)
    pairs = draw_pairs(num_tokens, 20, seed)
    found = token_pairs(layer.states_ND, layer.logits_NE, layer.expert_ids_NK, layer.router, pairs)
    rows, _, _ = np.linalg.svd(layer.router.centred_ED.T, full_matrices=False)
    for place, (one, other) in enumerate(zip(*pairs, strict=True)):
        difference_D = layer.states_ND[one] - layer.states_ND[other]
        logits_E = layer.logits_NE[one] - layer.logits_NE[other]
        assert found.distance["full"][place] == pytest.approx(np.sqrt(np.mean(difference_D**2)))
        seen_D = rows[:, : len(layer.router.visible_RD)].T @ difference_D
        assert found.distance["row"][place] == pytest.approx(np.sqrt((seen_D**2).sum() / size), abs=1e-9)
        assert found.logit_distance_P[place] == pytest.approx(np.std(logits_E), abs=1e-9)
        shared = set(layer.expert_ids_NK[one]) & set(layer.expert_ids_NK[other])
        assert found.overlap_P[place] == len(shared) / 2
    squares = {space: distance_P**2 for space, distance_P in found.distance.items()}
    assert squares["row"] + squares["null"] == pytest.approx(squares["full"], abs=1e-9)


def test_states_in_the_null_space_are_far_apart_and_routed_alike() -> None:
    rng = np.random.default_rng(0)
    weight_ED = np.concatenate([rng.normal(size=(4, 3)), np.zeros((4, 5))], axis=1)
    states_ND = np.concatenate([np.ones((30, 3)), rng.normal(size=(30, 5))], axis=1)
    layer = layer_of(states_ND, weight_ED)
    found = token_pairs(states_ND, layer.logits_NE, layer.expert_ids_NK, layer.router, draw_pairs(30, 40, 0))
    assert found.distance["row"] == pytest.approx(0, abs=1e-7) and found.logit_distance_P == pytest.approx(0, abs=1e-7)
    assert found.distance["full"] == pytest.approx(found.distance["null"]) and (found.distance["full"] > 0.1).all()
    assert (found.overlap_P == 1).all()


@given(st.integers(2, 8), st.integers(0, 1000))
def test_rotations_and_numbers_added_to_all_logits_change_nothing(size: int, seed: int) -> None:
    layer = random_layer(12, size, 5, seed)
    rng = np.random.default_rng(seed)
    rotation_DD = random_rotation(size, seed)
    other = layer_of(layer.states_ND @ rotation_DD, (layer.weight_ED + rng.normal(size=size)) @ rotation_DD)
    pairs = draw_pairs(12, 20, seed)
    one, two = (token_pairs(of.states_ND, of.logits_NE, layer.expert_ids_NK, of.router, pairs) for of in (layer, other))
    assert two.logit_distance_P == pytest.approx(one.logit_distance_P, abs=1e-8)
    for space, distance_P in one.distance.items():
        assert two.distance[space] == pytest.approx(distance_P, abs=1e-6)
