"""Tables of permuted tokens against all permutations of a few tokens, and what they must keep."""

# Shapes: N tokens, E experts, R permutations, A and B experts of either layer that have tokens.

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.layers import permuted_tables as module
from pathmoe_eval.layers.permuted_tables import permuted_tables, random_tables

TABLES = hnp.arrays(np.int64, (4, 4), elements=st.integers(0, 50)).filter(np.any)


@given(TABLES)
def test_loads_stay_without_the_experts_that_have_none(joint_EE):
    tables_RAB = permuted_tables(joint_EE, 0)
    assert len(tables_RAB) == 19
    for table_AB in tables_RAB:
        assert sorted(table_AB.sum(axis=1)) == sorted(joint_EE.sum(axis=1)[joint_EE.any(axis=1)])
        assert sorted(table_AB.sum(axis=0)) == sorted(joint_EE.sum(axis=0)[joint_EE.any(axis=0)])


@given(TABLES, st.permutations(range(4)), st.permutations(range(4)))
def test_names_do_not_matter(joint_EE, rows, columns):
    assert np.array_equal(permuted_tables(joint_EE[rows][:, columns], 0), permuted_tables(joint_EE, 0))


def test_frequencies_are_those_of_all_permutations(monkeypatch):
    first, second = (0, 0, 0, 1, 1, 2), (0, 0, 1, 1, 1, 1)
    # loads in order of size: 3, 2, 1 and 4, 2
    ways = Counter()
    for permuted in permutations(second):
        pairs = Counter(zip(first, permuted, strict=True))
        ways[tuple(pairs[a, b] for a in range(3) for b in (1, 0))] += 1
    num_draws = 50_000
    monkeypatch.setattr(module, "NUM_PERMUTATIONS", num_draws)
    joint_EE = np.zeros((3, 3), dtype=np.int64)
    np.add.at(joint_EE, (first, second), 1)
    drawn = Counter(map(tuple, permuted_tables(joint_EE, 0).reshape(num_draws, -1).tolist()))
    assert drawn.keys() == ways.keys()
    for cells, num_ways in ways.items():
        share = num_ways / ways.total()
        assert drawn[cells] / num_draws == pytest.approx(share, abs=4 * (share * (1 - share) / num_draws) ** 0.5)


def test_millions_of_tokens_vary_as_they_should():
    load_E = np.full(16, 450_000)
    tables_RAB = permuted_tables(np.diag(load_E), 0)
    expected = load_E[0] / 16
    # hypergeometric, up to the finite number of tokens
    deviation = (expected * (1 - 1 / 16) ** 2) ** 0.5
    assert tables_RAB.mean() == expected
    assert tables_RAB.std() == pytest.approx(deviation, rel=0.05)


def test_more_tokens_than_scipy_serves_vary_as_they_should(monkeypatch):
    load_A, load_B = np.array([3000, 1500, 400, 100]), np.array([2500, 1500, 1000])
    expected_AB = np.outer(load_A, load_B) / 5000
    deviation_AB = np.sqrt(expected_AB * np.outer(1 - load_A / 5000, 1 - load_B / 5000) * 5000 / 4999)
    for scale, limit in ((1, 1600), (10**6, 1 << 31)):
        monkeypatch.setattr(module, "_MAX_TOKENS", limit)
        tables_RAB = random_tables(load_A * scale, load_B * scale, 1000, np.random.default_rng(5))
        assert (tables_RAB.sum(axis=2) == load_A * scale).all()
        assert (tables_RAB.sum(axis=1) == load_B * scale).all()
        assert abs(tables_RAB.mean(axis=0) / scale - expected_AB).max() < 5 * deviation_AB.max() / (1000 * scale) ** 0.5
        assert tables_RAB.std(axis=0) / scale**0.5 == pytest.approx(deviation_AB, rel=0.12)


def test_seeds_differ_and_repeat():
    joint_EE = np.full((4, 4), 10)
    assert np.array_equal(permuted_tables(joint_EE, 1), permuted_tables(joint_EE, 1))
    assert not np.array_equal(permuted_tables(joint_EE, 1), permuted_tables(joint_EE, 2))


def test_one_expert_leaves_nothing_to_permute():
    joint_EE = np.zeros((3, 3), dtype=np.int64)
    joint_EE[1] = 5, 0, 7
    assert permuted_tables(joint_EE, 0).tolist() == [[[7, 5]]] * 19
    assert permuted_tables(joint_EE[:1, :1] + 3, 0).tolist() == [[[3]]] * 19
