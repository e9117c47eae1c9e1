"""Pairs of completions against all pairs written out, and how a limit is spread over forks."""

# Shapes: C completions, P pairs.

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.pairs import completion_branches, completion_pairs

MANY = 10**6


def pairs_of(tree, relation="any", grouping="any", max_pairs=MANY, seed=0, group_C=None):
    return completion_pairs(tree, relation=relation, grouping=grouping, max_pairs=max_pairs, seed=seed, group_C=group_C)


def listed(pairs):
    return list(zip(pairs.fork_P.tolist(), pairs.first_P.tolist(), pairs.second_P.tolist(), strict=True))


def written_out(tree, relation, grouping, group_C):
    """Every pair by its definition, from the paths alone."""
    completions = tree.completions().tolist()
    paths = {node: tree.path(node).tolist() for node in completions}
    parts = {(a, b): max(set(paths[a]) & set(paths[b])) for a in completions for b in completions if a != b}
    group = dict(zip(completions, group_C.tolist(), strict=True))

    def is_wanted(a, b):
        fork = parts[a, b]
        is_sibling = all(parts[x, y] <= fork for x in (a, b) for y in completions if x != y)
        is_alike = group[a] == group[b]
        in_groups = group[a] >= 0 and group[b] >= 0
        return (relation == "any" or is_sibling) and {
            "any": True,
            "within": in_groups and is_alike,
            "across": in_groups and not is_alike,
        }[grouping]

    return sorted((parts[a, b], a, b) for a, b in combinations(completions, 2) if is_wanted(a, b))


@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.sampled_from(["any", "siblings"]),
    st.sampled_from(["any", "within", "across"]),
)
def test_all_pairs_of_a_kind_are_found(random_tree, seed, num_completions, relation, grouping):
    tree = random_tree(seed, num_completions=num_completions, vocab_size=2)
    group_C = np.random.default_rng(seed).integers(-1, 2, len(tree.completions()))
    expected = written_out(tree, relation, grouping, group_C)
    found = pairs_of(tree, relation, grouping, group_C=group_C)
    assert sorted(listed(found)) == expected
    assert found.num_available == len(expected)
    assert found.num_forks_available == len({fork for fork, _, _ in expected})
    assert (np.diff(found.fork_P) >= 0).all()
    assert (found.relation, found.grouping) == (relation, grouping)


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_a_limit_takes_equally_many_of_each_fork(random_tree, seed, limit):
    tree = random_tree(seed, num_completions=9, vocab_size=2)
    every, some = pairs_of(tree), pairs_of(tree, max_pairs=limit, seed=seed)
    assert len(set(listed(some))) == len(listed(some)) == min(limit, every.num_available)
    assert set(listed(some)) <= set(listed(every))
    assert listed(pairs_of(tree, max_pairs=limit, seed=seed)) == listed(some)
    taken = {fork: np.count_nonzero(some.fork_P == fork) for fork in every.fork_P.tolist()}
    unfinished = [taken[fork] for fork in taken if taken[fork] < np.count_nonzero(every.fork_P == fork)]
    if unfinished:
        # No fork has more than one above any that could have given more.
        assert max(taken.values()) <= min(unfinished) + 1
    assert some.num_available == every.num_available


def test_the_draw_is_uniform_within_a_fork(plant_tree):
    tree = plant_tree([[token, 9] for token in range(1, 5)], lambda *_: [[0]], 2)
    drawn = [listed(pairs_of(tree, max_pairs=1, seed=seed))[0][1:] for seed in range(1200)]
    counts = [drawn.count(pair) for pair in sorted(set(drawn))]
    assert len(counts) == 6
    assert min(counts) > 200 - 5 * 200**0.5
    assert max(counts) < 200 + 5 * 200**0.5


def test_branches_hold_the_completions_behind_each_child(plant_tree):
    # The prompt ends at node 1: 2 after it leads to 5 and 6, 3 to 7, and 4 nowhere that counts.
    tree = plant_tree([[2, 5], [3, 7], [2, 6], [4, 8]], lambda *_: [[0]], 2, is_cut=(3,))
    found = [(fork, [branch.tolist() for branch in branches]) for fork, branches in completion_branches(tree)]
    # Completions by their nodes: [2, 5] ends at 3, [3, 7] at 5, [2, 6] at 6.
    assert tree.completions().tolist() == [3, 5, 6]
    assert found == [(1, [[0, 2], [1]]), (2, [[0], [2]])]


def test_hundreds_of_completions_take_no_time_that_counts(random_tree):
    tree = random_tree(0, num_completions=900, max_length=150, vocab_size=6)
    pairs = pairs_of(tree, max_pairs=3000)
    assert len(pairs.first_P) == 3000
    assert (tree.last_common_ancestor(pairs.first_P, pairs.second_P) == pairs.fork_P).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relation": "cousins"}, r"^relation \(cousins\) must be one of any, siblings; "),
        ({"grouping": "all"}, r"^grouping \(all\) must be one of any, within, across; "),
        ({"max_pairs": 0}, r"^max_pairs \(0\) must be at least 1; "),
        ({"grouping": "within"}, r'^grouping \(within\) must be "any" without groups; '),
        ({"group_C": np.zeros(3, dtype=int)}, r"^group_of_completion \(int64 \[3\]\) must be integers \[2\]; "),
    ],
)
def test_a_wrong_choice_is_named_in_one_line(plant_tree, fields, message):
    tree = plant_tree([[1], [2]], lambda *_: [[0]], 2)
    with pytest.raises(ValueError, match=message) as error:
        pairs_of(tree, **fields)
    assert "\n" not in str(error.value)


def test_a_tree_without_pairs_gives_none(plant_tree):
    pairs = pairs_of(plant_tree([[1, 2]], lambda *_: [[0]], 2))
    assert listed(pairs) == []
    assert pairs.num_available == pairs.num_forks_available == 0
