"""Truncated states, against the truncated SVD of all of them."""

# Shapes: N tokens, D hidden, E experts.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.geometry.moments import singular_directions
from pathmoe_eval.geometry.router_map import centred
from pathmoe_eval.geometry.truncation import doublings_to, truncation
from tests.eval.geometry.conftest import random_rotation
from tests.eval.geometry.test_moments import moments_of


@given(st.integers(8, 30), st.integers(2, 7), st.integers(2, 5), st.booleans(), st.integers(0, 1000))
def test_agreement_is_that_of_truncated_states(
    num_tokens: int, size: int, num_experts: int, has_bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    states_ND = rng.normal(size=(num_tokens, size)) * np.geomspace(1, 0.3, size) + 1
    weight_ED = centred(rng.normal(size=(num_experts, size)))
    bias_E = rng.normal(size=num_experts) if has_bias else None
    directions = singular_directions(moments_of(states_ND))
    found = truncation(np.array_split(states_ND, 3), directions, weight_ED, bias_E, num_ranks=2)
    whole = ranks(states_ND @ weight_ED.T + (0 if bias_E is None else bias_E))
    left, values, rows = np.linalg.svd(states_ND, full_matrices=False)
    for kept, agreement in zip(found.kept, found.agreement, strict=True):
        cut_ND = (left[:, :kept] * values[:kept]) @ rows[:kept]
        expected = (ranks(cut_ND @ weight_ED.T + (0 if bias_E is None else bias_E)) == whole).mean(axis=0)
        assert agreement == pytest.approx(expected[:2])
    assert found.agreement[-1] == (1.0, 1.0) and found.num_tokens == num_tokens
    for rank in range(2):
        assert found.agreement_null[rank] == np.bincount(whole[:, rank]).max() / num_tokens


@given(st.integers(2, 7), st.integers(0, 1000))
def test_a_rotation_of_the_hidden_space_changes_nothing(size: int, seed: int) -> None:
    rng, rotation_DD = np.random.default_rng(seed), random_rotation(size, seed)
    states_ND, weight_ED = rng.normal(size=(40, size)) * np.geomspace(1, 0.2, size) + 1, rng.normal(size=(4, size))
    plain, rotated = (
        truncation([states], singular_directions(moments_of(states)), centred(weight), None, num_ranks=2)
        for states, weight in ((states_ND, weight_ED), (states_ND @ rotation_DD, weight_ED @ rotation_DD))
    )
    assert rotated == plain


def ranks(logits_NE: np.ndarray) -> np.ndarray:
    return np.argsort(-logits_NE, axis=1, kind="stable")


def test_one_direction_suffices_for_rank_one_states() -> None:
    states_ND = np.outer(np.linspace(-1, 1, 20), [1.0, 2.0, 0.5])
    weight_ED = centred(np.random.default_rng(0).normal(size=(4, 3)))
    found = truncation([states_ND], singular_directions(moments_of(states_ND)), weight_ED, None, num_ranks=4)
    assert found.kept == (1,) and found.agreement == ((1.0,) * 4,)


@pytest.mark.parametrize(("number", "kept"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8))])
def test_numbers_double_up_to_all(number: int, kept: tuple[int, ...]) -> None:
    assert doublings_to(number) == kept
