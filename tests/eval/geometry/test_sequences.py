"""Similarities of sequences: plain definitions over tokens, planted domains, the bootstrap against one by hand."""

# Shapes: M sequences, D hidden, E experts, N tokens, K experts per token.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from pathmoe_eval.geometry.router_map import linear_map
from pathmoe_eval.geometry.sequences import overlap_of_trajectories, sequence_pairs, similarities, top_p_sets
from tests.eval.geometry.conftest import random_rotation


def usage_of(expert_ids_NK: np.ndarray, num_experts: int) -> np.ndarray:
    return np.bincount(expert_ids_NK.ravel(), minlength=num_experts) / expert_ids_NK.size


@given(st.integers(2, 5), st.integers(1, 12), st.integers(4, 7), st.integers(1, 3), st.integers(0, 1000))
def test_similarities_are_those_of_tokens(
    num_sequences: int, num_tokens: int, num_experts: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = [
        np.array([rng.permutation(num_experts)[:k] for _ in range(num_tokens + sequence)])
        for sequence in range(num_sequences)
    ]
    usage_ME = np.stack([usage_of(of_one, num_experts) for of_one in ids])
    pooled_MD = rng.normal(size=(num_sequences, 6))
    router = linear_map(rng.normal(size=(num_experts, 6)))
    found = similarities(pooled_MD, usage_ME, k, router)
    row_DD = np.linalg.pinv(router.centred_ED) @ router.centred_ED
    parts = {
        "pooled_full": pooled_MD,
        "pooled_row": pooled_MD @ row_DD,
        "pooled_null": pooled_MD @ (np.eye(6) - row_DD),
    }
    for one in range(num_sequences):
        for other in range(num_sequences):
            for name, part_MD in parts.items():
                p, q = part_MD[one], part_MD[other]
                seen = min(np.linalg.norm(p), np.linalg.norm(q)) > 1e-4
                expected = p @ q / (np.linalg.norm(p) * np.linalg.norm(q)) if seen else 0.0
                assert found[name][one, other] == pytest.approx(expected, abs=1e-6)
            overlaps = [len(set(a) & set(b)) / k for a in ids[one] for b in ids[other]]
            assert found["mask_overlap"][one, other] == pytest.approx(np.mean(overlaps))
            u, v = usage_ME[one], usage_ME[other]
            assert found["usage_cosine"][one, other] == pytest.approx(u @ v / np.sqrt((u @ u) * (v @ v)))
            sets = [set(np.flatnonzero(of_one)) for of_one in top_p_sets(usage_ME[[one, other]])]
            assert found["top_p_jaccard"][one, other] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))


@given(st.integers(2, 9), st.floats(0.05, 0.99), st.integers(0, 1000))
def test_the_fewest_experts_hold_the_share(num_experts: int, p: float, seed: int) -> None:
    usage_E = np.random.default_rng(seed).dirichlet(np.full(num_experts, 0.5))
    (is_in_E,) = top_p_sets(usage_E[None], p)
    number = int(is_in_E.sum())
    descending = np.sort(usage_E)[::-1]
    assert usage_E[is_in_E].sum() == pytest.approx(descending[:number].sum())
    assert descending[:number].sum() >= p - 1e-8 and descending[: number - 1].sum() < p


def test_a_share_that_is_met_exactly_needs_no_further_expert() -> None:
    usage = np.array([[0.1, 0.4, 0.1, 0.3, 0.1]])
    assert top_p_sets(usage).tolist() == [[True, True, False, True, False]], "of equal ones the lower id"


def planted(seed: int, in_row_space: bool) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Two domains, which differ in their states in the row space or outside of it; usage follows the row space."""
    rng = np.random.default_rng(seed)
    weight_ED = np.concatenate([np.eye(4), np.zeros((4, 4))], axis=1)
    domains = ["math"] * 8 + ["code"] * 8
    sign_M = np.array([1.0] * 8 + [-1.0] * 8)
    pooled_MD = 0.05 * rng.normal(size=(16, 8))
    pooled_MD[:, 0 if in_row_space else 6] += sign_M
    logits_ME = pooled_MD @ weight_ED.T
    usage_ME = np.exp(2 * logits_ME) / np.exp(2 * logits_ME).sum(axis=1, keepdims=True)
    return pooled_MD, usage_ME, domains, weight_ED


def test_domains_that_the_router_sees_are_routed_apart() -> None:
    pooled_MD, usage_ME, domains, weight_ED = planted(0, in_row_space=True)
    found = sequence_pairs(pooled_MD, usage_ME, 2, domains, linear_map(weight_ED))
    assert (found.num_sequences, found.domains) == (16, ("math", "code"))
    assert found.within["pooled_row"].value > 0.9 > -0.9 > found.across["pooled_row"].value
    assert found.within["usage_cosine"].value > found.across["usage_cosine"].value + 0.2
    assert found.correlation["pooled_row"]["usage_cosine"].value > 0.95
    assert min(of_usage.value for of_usage in found.correlation["pooled_row"].values()) > 0.7
    low, high = found.within["usage_cosine"].interval
    assert low <= found.within["usage_cosine"].value <= high < low + 0.1


def test_domains_that_the_router_does_not_see_are_routed_alike() -> None:
    pooled_MD, usage_ME, domains, weight_ED = planted(0, in_row_space=False)
    found = sequence_pairs(pooled_MD, usage_ME, 2, domains, linear_map(weight_ED))
    assert found.across["pooled_full"].value < -0.8 and found.across["pooled_null"].value < -0.9
    assert found.across["usage_cosine"].value == pytest.approx(found.within["usage_cosine"].value, abs=0.01)
    assert abs(found.correlation["pooled_null"]["usage_cosine"].value) < 0.2


def test_states_that_a_router_does_not_see_have_no_cosine_there() -> None:
    rng = np.random.default_rng(0)
    router = linear_map(rng.normal(size=(4, 8)))
    _, null_MD = router.split(rng.normal(size=(6, 8)))
    found = similarities(null_MD, np.full((6, 4), 0.25), 1, router)
    assert not found["pooled_row"].any() and found["pooled_null"] == pytest.approx(found["pooled_full"])


def test_means_are_over_pairs_of_different_sequences() -> None:
    rng = np.random.default_rng(0)
    usage_ME, pooled_MD = rng.dirichlet(np.ones(5), 7), rng.normal(size=(7, 4))
    domains, router = ["a", "b", "a", "c", "b", "a", "a"], linear_map(rng.normal(size=(5, 4)))
    found = sequence_pairs(pooled_MD, usage_ME, 1, domains, router)
    similarity = similarities(pooled_MD, usage_ME, 1, router)
    square = similarity["usage_cosine"]
    pairs = [(i, j) for i in range(7) for j in range(i)]
    within = [square[i, j] for i, j in pairs if domains[i] == domains[j]]
    across = [square[i, j] for i, j in pairs if domains[i] != domains[j]]
    assert found.within["usage_cosine"].value == pytest.approx(np.mean(within))
    assert found.across["usage_cosine"].value == pytest.approx(np.mean(across))
    for usage, of_usage in found.correlation["pooled_full"].items():
        of_pairs = [[similarity[name][i, j] for i, j in pairs] for name in ("pooled_full", usage)]
        assert of_usage.value == pytest.approx(np.corrcoef(of_pairs)[0, 1])


def test_the_interval_is_that_of_resampled_sequences() -> None:
    rng = np.random.default_rng(0)
    usage_ME, pooled_MD = rng.dirichlet(np.ones(5), 12), rng.normal(size=(12, 4))
    router = linear_map(rng.normal(size=(5, 4)))
    found = sequence_pairs(pooled_MD, usage_ME, 1, ["a"] * 12, router, num_resamples=4000)
    square = similarities(pooled_MD, usage_ME, 1, router)["mask_overlap"]
    means = []
    for _ in range(4000):
        drawn = rng.integers(12, size=12)
        means.append(np.mean([square[i, j] for i in drawn for j in drawn if i != j]))
    assert found.within["mask_overlap"].interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.003)
    assert found.across["mask_overlap"].value is None and found.across["mask_overlap"].interval is None


@given(st.integers(2, 6), st.integers(0, 1000))
def test_a_rotation_of_the_hidden_space_changes_nothing(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pooled_MD, usage_ME, weight_ED = (
        rng.normal(size=(5, size)),
        rng.dirichlet(np.ones(4), 5),
        rng.normal(size=(4, size)),
    )
    rotation_DD = random_rotation(size, seed)
    plain = similarities(pooled_MD, usage_ME, 1, linear_map(weight_ED))
    rotated = similarities(pooled_MD @ rotation_DD, usage_ME, 1, linear_map(weight_ED @ rotation_DD))
    assert rotated["pooled_full"] == pytest.approx(plain["pooled_full"], abs=1e-8)
    for name in ("pooled_row", "pooled_null"):
        assert rotated[name] == pytest.approx(plain[name], abs=1e-6)


def test_one_sequence_has_no_pair() -> None:
    with pytest.raises(ValueError, match=r"^--data \(1 sequences\) must hold at least 2; give more documents$"):
        sequence_pairs(np.ones((1, 3)), np.ones((1, 2)) / 2, 1, ["a"], linear_map(np.eye(2, 3)))


def test_trajectories_are_told_by_problem_and_author() -> None:
    usage_ME = np.eye(4)[[0, 0, 1, 1, 0, 2]]  # one expert each
    problems, authors = ["p", "p", "q", "q", "p", "q"], ["a", "a", "a", "a", "b", "b"]
    found = overlap_of_trajectories(usage_ME, problems, authors)
    assert {name: mean.value for name, mean in found.items()} == {
        "same problem, same author": 1.0,
        "same problem, different author": pytest.approx(2 / 4),
        "different problem, same author": 0.0,
        "different problem, different author": 0.0,
    }
    pairs = [(i, j) for i in range(6) for j in range(i)]
    same = [usage_ME[i] @ usage_ME[j] for i, j in pairs if problems[i] == problems[j] and authors[i] != authors[j]]
    assert found["same problem, different author"].value == pytest.approx(np.mean(same))
    alone = overlap_of_trajectories(usage_ME, problems, ["a"] * 6)
    assert alone["same problem, different author"].value is None


def test_the_interval_of_texts_of_one_problem_is_that_of_resampled_problems() -> None:
    # On half of 16 problems all three authors use one expert, on the others each has one of its own.
    usage_ME = np.eye(3)[[0, 0, 0] * 8 + [0, 1, 2] * 8]
    problems = [str(problem) for problem in range(16) for _ in range(3)]
    found = overlap_of_trajectories(usage_ME, problems, ["a", "b", "c"] * 16, num_resamples=4000)
    # The share of problems of the first kind among those drawn is binomial.
    expected = binom(16, 0.5).ppf([0.025, 0.975]) / 16
    assert found["same problem, different author"].value == 0.5
    assert found["same problem, different author"].interval == pytest.approx(expected)
