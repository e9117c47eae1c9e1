"""Figures of one kind of positions against means taken one by one."""

# Shapes: L MoE layers, A aligned positions, P pairs.

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.locality.fork_statistics import fork_interval
from pathmoe_eval.locality.position_overlap import KindOfPosition, position_overlap

SETTINGS = Bootstrap(num_resamples=20, seed=0, confidence=0.9)
FORK_P = np.array([3, 3, 5, 9])


def case(seed, num_positions):
    rng = np.random.default_rng(seed)
    found_LA, null_LA = rng.random((2, 3, num_positions))
    has_match_A, which_A = rng.random((2, num_positions)) < 0.6
    pair_A = np.sort(rng.integers(0, 4, num_positions))
    distance_A = rng.integers(1, 12, num_positions)
    alignment = SimpleNamespace(pair_A=pair_A, distance_A=distance_A)
    kind = KindOfPosition(found_LA, null_LA, has_match_A, alignment, FORK_P, which_A)
    return position_overlap(kind, [1, 3, 8], (0.5, 0.25), SETTINGS), found_LA, null_LA, has_match_A, which_A, alignment


def pair_means(value_LA, pair_A, which_A):
    """[layers][pairs that have any], over positions of a pair."""
    pairs = [pair for pair in range(4) if (which_A & (pair_A == pair)).any()]
    return np.array([[row_A[which_A & (pair_A == pair)].mean() for pair in pairs] for row_A in value_LA]), pairs


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_means_are_over_positions_then_pairs_then_layers(seed, num_positions):
    found, found_LA, null_LA, has_match_A, which_A, alignment = case(seed, num_positions)
    assert found.num_positions == which_A.sum()
    assert found.num_matched == (which_A & has_match_A).sum()
    if not which_A.any():
        assert found.jaccard is found.jaccard_pooled is found.jaccard_of_layer is found.multiple is None
        return
    means, pairs = pair_means(found_LA, alignment.pair_A, which_A)
    assert (found.num_pairs, found.num_forks) == (len(pairs), len(set(FORK_P[pairs].tolist())))
    assert found.jaccard_of_layer == pytest.approx(means.mean(axis=1))
    assert found.jaccard == pytest.approx(means.mean(axis=1).mean())
    assert found.jaccard_pooled == pytest.approx(found_LA[:, which_A].mean())
    assert found.multiple == pytest.approx(4 * found.jaccard)
    assert found.multiple_exact == pytest.approx(2 * found.jaccard)
    interval = fork_interval(means.mean(axis=0), np.ones(len(pairs)), FORK_P[pairs], SETTINGS)
    assert found.jaccard_interval == (interval and pytest.approx(interval))
    if (which_A & has_match_A).any():
        nulls, _ = pair_means(null_LA, alignment.pair_A, which_A & has_match_A)
        assert found.jaccard_of_layer_null_matched == pytest.approx(nulls.mean(axis=1))
        assert found.jaccard_null_matched == pytest.approx(nulls.mean())
    else:
        assert found.jaccard_null_matched is None


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_bins_hold_each_position_once(seed, num_positions):
    found, found_LA, _, _, which_A, alignment = case(seed, num_positions)
    assert [(of.first_distance, of.last_distance) for of in found.distances] == [(1, 2), (3, 7), (8, None)]
    assert sum(of.num_positions for of in found.distances) == found.num_positions
    for of_bin in found.distances:
        last = of_bin.last_distance or 99
        is_in_A = which_A & (alignment.distance_A >= of_bin.first_distance) & (alignment.distance_A <= last)
        assert of_bin.num_positions == is_in_A.sum()
        if is_in_A.any():
            means, pairs = pair_means(found_LA, alignment.pair_A, is_in_A)
            assert of_bin.jaccard == pytest.approx(means.mean())
            assert (of_bin.num_pairs, of_bin.num_forks) == (len(pairs), len(set(FORK_P[pairs].tolist())))
        else:
            assert of_bin.jaccard is of_bin.jaccard_interval is of_bin.jaccard_null_matched is None
