"""Run statistics from window counts against runs found one by one, and nulls against enumeration and closed forms."""

# Shapes: L MoE layers, M = L lengths, E experts, R pairs of a token and an expert.

from itertools import groupby, pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layers.run_lengths import expected_windows, longest_run_null, run_statistics


@st.composite
def blocks_of_layers(draw):
    num_layers = draw(st.integers(1, 6))
    ends = draw(st.sets(st.integers(1, num_layers)))
    return tuple(range(a, b) for a, b in pairwise(sorted({0, num_layers} | ends)))


def runs_of(is_picked, blocks):
    """Lengths of the runs of one token and expert."""
    cut = [is_picked[block.start : block.stop] for block in blocks]
    return [len(list(group)) for layers in cut for picked, group in groupby(layers) if picked]


def windows_of(is_picked_RL):
    """Windows of all tokens and experts, one by one."""
    num_layers = len(is_picked_RL[0])
    windows_LM = np.zeros((num_layers, num_layers), dtype=np.int64)
    for picks, first in product(is_picked_RL, range(num_layers)):
        for length in range(1, num_layers - first + 1):
            windows_LM[first, length - 1] += all(picks[first : first + length])
    return windows_LM


@given(blocks_of_layers(), st.data())
def test_windows_give_the_runs(blocks, data):
    num_layers = blocks[-1].stop
    picks = st.lists(st.booleans(), min_size=num_layers, max_size=num_layers)
    is_picked_RL = data.draw(st.lists(picks, min_size=1, max_size=8).filter(lambda rows: any(map(any, rows))))
    result = run_statistics(windows_of(is_picked_RL), blocks)
    runs = [run for row in is_picked_RL for run in runs_of(row, blocks)]
    lengths = range(1, num_layers + 1)
    assert result.mean_length == pytest.approx(sum(runs) / len(runs))
    assert result.length_share == pytest.approx([runs.count(m) / len(runs) for m in lengths])
    assert result.run_share == pytest.approx([sum(run >= m for run in runs) / len(runs) for m in lengths])
    assert result.pick_share == pytest.approx([sum(run for run in runs if run >= m) / sum(runs) for m in lengths])


@st.composite
def shares(draw):
    blocks = draw(blocks_of_layers())
    weights = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)
    weights_LE = np.array([draw(weights) for _ in range(blocks[-1].stop)], dtype=np.float64)
    return weights_LE / weights_LE.sum(axis=1, keepdims=True), blocks


@given(shares())
def test_nulls_equal_a_sum_over_all_paths(case):
    share_LE, blocks = case
    num_layers = len(share_LE)
    longest_M, windows_LM = np.zeros(num_layers), np.zeros((num_layers, num_layers))
    for path in product(range(3), repeat=num_layers):
        probability = np.prod([share_LE[layer, expert] for layer, expert in enumerate(path)])
        is_picked_EL = [[choice == expert for choice in path] for expert in range(3)]
        windows_LM += probability * windows_of(is_picked_EL)
        longest_M[: max(run for row in is_picked_EL for run in runs_of(row, blocks))] += probability
    assert longest_run_null(share_LE, blocks) == pytest.approx(longest_M, abs=1e-12)
    assert expected_windows(share_LE) == pytest.approx(windows_LM, abs=1e-12)


def test_uniform_loads_are_runs_of_coin_tosses():
    # a step keeps the expert with probability 1 / E, whatever happened before (de Moivre's recurrence for such runs)
    num_layers, num_experts = 24, 16
    null_M = longest_run_null(np.full((num_layers, num_experts), 1 / num_experts), (range(num_layers),))
    keep = 1 / num_experts
    for length in range(1, num_layers + 1):
        successes = length - 1
        none = [1.0] * num_layers  # none[n]: probability that n steps hold no run of that many successes
        for n in range(num_layers):
            if n == successes:
                none[n] = 1 - keep**successes
            elif n > successes:
                none[n] = none[n - 1] - (1 - keep) * keep**successes * none[n - successes - 1]
        assert null_M[length - 1] == pytest.approx(1 - none[num_layers - 1], rel=1e-9, abs=1e-12)


def test_uniform_loads_have_geometric_runs_far_from_the_last_layer():
    num_layers, share = 400, 0.25
    result = run_statistics(expected_windows(np.full((num_layers, 16), share)), (range(num_layers),))
    assert result.mean_length == pytest.approx(1 / (1 - share), rel=2 / num_layers)
    expected = [share ** (m - 1) for m in range(1, 6)]
    assert result.run_share[:5] == pytest.approx(expected, rel=10 / num_layers)


def test_rare_runs_keep_their_digits():
    # all of 12 layers with the same of 16 experts
    null_M = longest_run_null(np.full((12, 16), 1 / 16), (range(12),))
    assert null_M[-1] == pytest.approx(16.0**-11, rel=1e-12, abs=0)


def test_one_expert_is_kept_throughout():
    share_LE = np.ones((5, 1))
    assert longest_run_null(share_LE, (range(5),)).tolist() == [1.0] * 5
    assert longest_run_null(share_LE, (range(2), range(2, 5))).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert run_statistics(expected_windows(share_LE), (range(5),)).pick_share == (1.0,) * 5
