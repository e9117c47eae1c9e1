"""Explained variance of overlap: planted dependences, and nothing where nothing is."""

# Shapes: P pairs, N tokens, D hidden, E experts, K experts per token.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.geometry.explained_overlap import correlation_ratio, explained_overlap
from pathmoe_eval.geometry.pairs import TokenPairs, draw_pairs, token_pairs
from tests.eval.geometry.conftest import layer_of

RNG = np.random.default_rng(0)


def pairs_with(row_P: np.ndarray, null_P: np.ndarray, overlap_P: np.ndarray) -> TokenPairs:
    full_P = np.sqrt(row_P**2 + null_P**2)
    index_P = np.arange(len(row_P))
    return TokenPairs(
        first_P=index_P, second_P=index_P + 1, distance={"full": full_P, "row": row_P, "null": null_P},
        logit_distance_P=2 * row_P, overlap_P=overlap_P,
    )  # fmt: skip


def test_what_the_row_space_decides_is_explained_by_it_alone() -> None:
    row_P, null_P = RNG.uniform(size=20_000), 3 * RNG.uniform(size=20_000)
    found = explained_overlap(pairs_with(row_P, null_P, (row_P < 0.5).astype(float)))
    assert found.share["row"] == found.share["logits"] == pytest.approx(1, abs=0.02)
    assert found.share["null"] == pytest.approx(0, abs=0.01)
    assert 0.01 < found.share["full"] < 0.5
    assert found.mean_overlap == pytest.approx(0.5, abs=0.02)
    distances, overlaps, _ = zip(*found.curve["row"], strict=True)
    assert list(distances) == sorted(distances) and overlaps[0] == 1 and overlaps[-1] == 0


def test_any_form_of_dependence_counts() -> None:
    row_P = RNG.uniform(size=20_000)
    found = explained_overlap(pairs_with(row_P, np.ones(20_000), ((row_P > 0.3) & (row_P < 0.7)).astype(float)))
    assert found.share["row"] == pytest.approx(1, abs=0.05)
    assert found.share["null"] is None, "all distances are equal"


def test_the_row_space_may_explain_more_than_logits() -> None:
    """The last direction, which never decides, has by far the largest logits."""
    rng = np.random.default_rng(0)
    states_ND = np.concatenate([rng.normal(size=(400, 3)), np.ones((400, 1))], axis=1)
    weight_ED = np.array([[3.0, 0, 0, 0], [-3, 0, 0, 0], [0, 3, 0, 0], [0, -3, 0, 0], [0, 0, 10, -100]])
    layer = layer_of(states_ND, weight_ED, k=1)
    drawn = draw_pairs(400, 20_000, 0)
    found = explained_overlap(token_pairs(states_ND, layer.logits_NE, layer.expert_ids_NK, layer.router, drawn))
    assert found.share["row"] > found.share["logits"] + 0.1


def test_equal_overlaps_leave_nothing_to_explain() -> None:
    found = explained_overlap(pairs_with(RNG.uniform(size=200), RNG.uniform(size=200), np.ones(200)))
    assert set(found.share.values()) == {None}


@given(st.integers(3, 12), st.integers(0, 100))
def test_the_ratio_is_one_way_analysis_of_variance(num_bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bin_P = np.concatenate([np.arange(num_bins), rng.integers(num_bins, size=60)])
    values_P = rng.normal(size=len(bin_P)) + 0.5 * bin_P
    within = sum(((values_P[bin_P == one] - values_P[bin_P == one].mean()) ** 2).sum() for one in range(num_bins))
    total = ((values_P - values_P.mean()) ** 2).sum()
    expected = 1 - (within / (len(bin_P) - num_bins)) / (total / (len(bin_P) - 1))
    assert correlation_ratio(values_P, bin_P) == pytest.approx(expected)


def test_bins_alone_explain_nothing() -> None:
    found = [correlation_ratio(RNG.normal(size=300), RNG.integers(50, size=300)) for _ in range(200)]
    assert np.mean(found) == pytest.approx(0, abs=0.02)
