"""Information and purity against their definitions, and the drawn null against all permutations of the labels."""

# Shapes: N tokens.

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.classes.label_permutations import AgainstPermutations, against_permutations
from pathmoe_eval.classes.path_class_counts import PathClassCounts


def entropy(symbols):
    return -math.fsum(c / len(symbols) * math.log2(c / len(symbols)) for c in Counter(symbols).values())


def brute_force(paths, labels):
    """Information in bits and purity, from the definitions."""
    information = entropy(paths) + entropy(labels) - entropy(list(zip(paths, labels, strict=True)))
    members = {path: [label for p, label in zip(paths, labels, strict=True) if p == path] for path in paths}
    return information, sum(max(Counter(row).values()) for row in members.values()) / len(paths)


def table_of(paths, labels):
    counts = PathClassCounts(num_layers=1, num_experts=max(paths) + 1)
    counts.update(np.array(paths)[:, None], np.array(labels))
    return counts.table()


tokens = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40)


@given(tokens)
def test_observed_equals_brute_force(pairs):
    paths, labels = zip(*pairs, strict=True)
    information, purity = against_permutations(table_of(paths, labels), num_permutations=2, seed=0)
    assert (information.observed, purity.observed) == pytest.approx(brute_force(paths, labels), abs=1e-9)


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        ([0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0, 2]),
        ([0, 0, 0, 1, 1, 2, 3], [0, 0, 0, 1, 1, 1, 2]),
        ([0, 0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 1, 1, 1]),
        ([3, 3, 1, 1, 2, 2], [0, 1, 2, 0, 1, 2]),
    ],
)
@pytest.mark.parametrize("large", [0, 1, 1 << 12])
def test_the_null_is_that_of_all_permutations(paths, labels, large, monkeypatch):
    # both ways to draw a path: by its counts, from `large` tokens a class on, and label by label, in pieces
    monkeypatch.setattr("pathmoe_eval.classes.label_permutations._LARGE_PATH", large)
    monkeypatch.setattr("pathmoe_eval.classes.label_permutations._LABELS_AT_ONCE", 3)
    everything = np.array([brute_force(paths, permuted) for permuted in permutations(labels)])
    num_permutations = 4000
    results = against_permutations(table_of(paths, labels), num_permutations=num_permutations, seed=1)
    for result, values in zip(results, everything.T, strict=True):
        assert abs(result.null_mean - values.mean()) < 4 * values.std() / num_permutations**0.5
        assert result.null_std == pytest.approx(values.std(), rel=0.1)
        assert result.excess == pytest.approx(result.observed - result.null_mean)
        assert result.z == pytest.approx(result.excess / result.null_std)


def test_every_permuted_table_keeps_both_margins(monkeypatch):
    monkeypatch.setattr("pathmoe_eval.classes.label_permutations._LARGE_PATH", 7)
    monkeypatch.setattr("pathmoe_eval.classes.label_permutations._LABELS_AT_ONCE", 64)
    rng = np.random.default_rng(0)
    paths, labels = (rng.integers(0, 40, 500) * rng.integers(0, 2, 500)).tolist(), rng.integers(0, 3, 500).tolist()
    # as many permutations as it takes for a lost or doubled token to move a mean beyond the shuffled ones'
    result, _ = against_permutations(table_of(paths, labels), num_permutations=300, seed=2)
    shuffled = [brute_force(paths, rng.permutation(labels).tolist())[0] for _ in range(300)]
    assert abs(result.null_mean - np.mean(shuffled)) < 4 * np.std(shuffled) * (2 / 300) ** 0.5
    assert result.null_std == pytest.approx(np.std(shuffled), rel=0.2)


@given(tokens, st.integers(0, 5), st.integers(0, 3))
def test_names_of_paths_and_classes_change_nothing(pairs, path_shift, class_shift):
    paths, labels = zip(*pairs, strict=True)
    renamed = table_of([(p + path_shift) % 6 for p in paths], [(c + class_shift) % 4 for c in labels])
    kept = against_permutations(table_of(paths, labels), num_permutations=3, seed=3)
    assert against_permutations(renamed, num_permutations=3, seed=3) == kept


@pytest.mark.parametrize(
    ("paths", "labels"), [([0, 1, 2, 3], [0, 0, 1, 1]), ([0, 0, 0, 1], [5, 5, 5, 5]), ([0] * 5000, [0, 1] * 2500)]
)
def test_where_no_permutation_differs_there_is_no_score(paths, labels):
    observed = brute_force(paths, labels)
    for result, value in zip(
        against_permutations(table_of(paths, labels), num_permutations=3, seed=0), observed, strict=True
    ):
        assert result == AgainstPermutations(
            observed=result.observed, null_mean=result.observed, null_std=0.0, excess=0.0, z=None
        )
        assert result.observed == pytest.approx(value, abs=1e-9)


def test_the_seed_decides():
    table = table_of([n % 40 for n in range(300)], [n % 7 for n in range(300)])
    first, again, other = (against_permutations(table, num_permutations=5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("at_once", [5, 6, 100])
def test_groups_of_paths_that_are_drawn_on_their_own_are_those_of_all_permutations(at_once, monkeypatch):
    monkeypatch.setattr("pathmoe_eval.classes.label_permutations._MAX_TOKENS", at_once)
    paths, labels = [0, 0, 0, 0, 0, 1, 1, 1, 2], [0, 0, 1, 1, 1, 0, 2, 2, 0]
    distinct = {tuple(order) for order in permutations(labels)}
    everything = np.array([brute_force(paths, permuted) for permuted in distinct])
    results = against_permutations(table_of(paths, labels), num_permutations=3000, seed=4)
    for result, values in zip(results, everything.T, strict=True):
        assert abs(result.null_mean - values.mean()) < 4 * values.std() / 3000**0.5
        assert result.null_std == pytest.approx(values.std(), rel=0.1)


def test_billions_of_tokens():
    counts = PathClassCounts(num_layers=1, num_experts=4)
    counts.update(np.array([[0], [1], [2], [2], [3]]), np.array([0, 1, 0, 1, 2]))
    for _ in range(30):
        counts.merge(counts)
    information, purity = against_permutations(counts.table(), num_permutations=4, seed=0)
    assert information.observed == pytest.approx(brute_force([0, 1, 2, 2, 3], [0, 1, 0, 1, 2])[0])
    assert purity.observed == 0.8
    # as many bits as (paths - 1) (classes - 1) degrees of freedom give independent draws: 6 / (2 N ln 2)
    assert 0 < information.null_mean < 100 / 2**30
    assert purity.null_mean == pytest.approx(0.4, abs=1e-4)
