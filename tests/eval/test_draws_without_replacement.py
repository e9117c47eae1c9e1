"""Draws without replacement against the probabilities of scipy, also where numpy does not go."""

# Shapes: C classes (or columns of a table), P rows of a table.

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import hypergeom, multivariate_hypergeom

from pathmoe_eval import draws_without_replacement as module
from pathmoe_eval.draws_without_replacement import draw_classes, groups_of_rows, hypergeometric


@pytest.mark.parametrize(
    ("good", "bad", "size"),
    [(5, 7, 4), (1, 9, 6), (6, 2, 7), (30, 50, 41), (3, 3, 3), (4, 0, 2), (0, 4, 2), (4, 3, 0), (4, 3, 7), (40, 2, 5)],
)
def test_numbers_are_hypergeometric(good, bad, size, monkeypatch):
    monkeypatch.setattr(module, "_MAX_OF_NUMPY", 0)
    rng = np.random.default_rng(0)
    num_draws = 4000
    drawn = Counter(hypergeometric(good, bad, size, rng) for _ in range(num_draws))
    assert set(drawn) <= set(range(max(0, size - bad), min(good, size) + 1))
    for number in range(size + 1):
        share = hypergeom.pmf(number, good + bad, good, size)
        assert drawn[number] / num_draws == pytest.approx(share, abs=4.5 * (share * (1 - share) / num_draws) ** 0.5)


def test_billions_vary_as_they_should():
    rng = np.random.default_rng(1)
    good, bad, size = 3 * 10**9, 2 * 10**9, 10**9
    drawn = np.array([hypergeometric(good, bad, size, rng) for _ in range(2000)])
    deviation = (size * 0.6 * 0.4 * (1 - size / (good + bad))) ** 0.5
    assert drawn.mean() == pytest.approx(0.6 * size, abs=4 * deviation / 2000**0.5)
    assert drawn.std() == pytest.approx(deviation, rel=0.08)


@pytest.mark.parametrize("limit", [0, 10**9], ids=["ours", "numpy"])
def test_classes_are_multivariate_hypergeometric(limit, monkeypatch):
    monkeypatch.setattr(module, "_MAX_OF_NUMPY", limit)
    rng = np.random.default_rng(2)
    tokens_C, num_draws = np.array([3, 0, 2, 4]), 4000
    drawn = Counter(tuple(draw_classes(tokens_C, 5, rng).tolist()) for _ in range(num_draws))
    ways = [way for way in itertools.product(*(range(n + 1) for n in tokens_C)) if sum(way) == 5]
    assert set(drawn) <= set(ways)
    for way in ways:
        share = multivariate_hypergeom.pmf(way, tokens_C, 5)
        assert drawn[way] / num_draws == pytest.approx(share, abs=4.5 * (share * (1 - share) / num_draws) ** 0.5)


def test_groups_have_all_rows_and_all_tokens():
    rows_P, columns_C = np.array([9, 4, 3, 3, 1]), np.array([12, 8])
    groups = list(groups_of_rows(rows_P, columns_C, 7, np.random.default_rng(3)))
    assert [(rows.start, rows.stop) for rows, _ in groups] == [(0, 1), (1, 3), (3, 5)]
    assert [int(of_group_C.sum()) for _, of_group_C in groups] == [9, 7, 4]
    assert sum(of_group_C for _, of_group_C in groups).tolist() == [12, 8]


def test_one_group_draws_nothing():
    rng = np.random.default_rng(4)
    ((rows, of_group_C),) = groups_of_rows(np.array([3, 2]), np.array([4, 1]), 5, rng)
    assert (rows, of_group_C.tolist()) == (slice(0, 2), [4, 1])
    assert rng.bit_generator.state == np.random.default_rng(4).bit_generator.state
