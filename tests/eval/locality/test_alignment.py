"""Alignments: planted ones, and what any of them must be."""

# Shapes: T tokens, A aligned positions.

from difflib import SequenceMatcher

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.alignment import align_by_diff, align_by_lines, align_by_position, diff_positions
from pathmoe_eval.locality.pairs import completion_pairs


def pairs_of(tree):
    return completion_pairs(tree, relation="any", grouping="any", max_pairs=10**6, seed=0)


def tokens_of(tree, alignment):
    return list(
        zip(
            tree.token_ids_N[alignment.first_A].tolist(),
            tree.token_ids_N[alignment.second_A].tolist(),
            alignment.distance_A.tolist(),
            strict=True,
        )
    )


def test_a_planted_pair_is_aligned_in_each_way(plant_tree):
    # They share 7; then a comment 50 51 is inserted in the second, and 3 is replaced by 4. 9 ends both.
    tree = plant_tree([[7, 1, 2, 3, 5, 9], [7, 50, 51, 1, 2, 4, 5, 9]], lambda *_: [[0]], 2)
    pairs = pairs_of(tree)
    by_position = align_by_position(tree, pairs)
    assert tokens_of(tree, by_position) == [(1, 50, 1), (2, 51, 2), (3, 1, 3), (5, 2, 4)]
    assert by_position.num_without_routing == 1  # the end of the first
    by_diff = align_by_diff(tree, pairs)
    assert tokens_of(tree, by_diff) == [(1, 1, 3), (2, 2, 4), (3, 4, 5), (5, 5, 6)]
    assert by_diff.num_without_routing == 1  # both ends, at one position
    # Lines: 0 is the prompt and 7; then `1 2` and `3 5` against a comment, `1 2` and `4 5`; the ends have none.
    first, second = tree.completions().tolist()
    lines = {first: np.array([0, 0, 0, 1, 1, 2, 2, -1]), second: np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, -1])}
    by_lines = align_by_lines(tree, pairs, lines, [[(0, 0), (1, 2), (2, 3), (1, 3)]])
    assert tokens_of(tree, by_lines) == [(1, 1, 3), (2, 2, 4), (3, 4, 5), (5, 5, 6)]
    assert tokens_of(tree, align_by_lines(tree, pairs, lines, [[(2, 3), (8, 2)]])) == [(3, 4, 5), (5, 5, 6)]
    assert [way.method for way in (by_position, by_diff, by_lines)] == ["position", "diff", "lines"]


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_a_diff_ascends_and_matches_what_difflib_does(first, second):
    places = diff_positions(first, second)
    assert (np.diff(places, axis=1) > 0).all()
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    num_same = sum(first[a] == second[b] for a, b in places.T)
    assert num_same == sum(block.size for block in matcher.get_matching_blocks())
    assert diff_positions(first, first).tolist() == [[*range(len(first))]] * 2


def test_replaced_blocks_of_other_lengths_have_no_counterpart():
    assert diff_positions([1, 7, 8, 2], [1, 5, 6, 2]).tolist() == [[0, 1, 2, 3]] * 2
    assert diff_positions([1, 7, 8, 2], [1, 5, 2]).tolist() == [[0, 3], [0, 2]]


def test_popular_tokens_of_long_completions_are_matched():
    # With its heuristic difflib ignores what is more than 1% of 200 elements or more.
    tokens = [index % 2 for index in range(400)]
    assert diff_positions(tokens, [5, *tokens]).shape == (2, 400)


@given(st.integers(0, 10**6))
def test_positions_lie_after_the_fork_and_on_the_paths(random_tree, seed):
    tree = random_tree(seed)
    pairs = pairs_of(tree)
    lines = {node: np.zeros(int(tree.depth_N[node]) + 1, dtype=int) for node in tree.completions().tolist()}
    diff = align_by_diff(tree, pairs)
    for alignment in (
        align_by_position(tree, pairs),
        diff,
        align_by_lines(tree, pairs, lines, [[(0, 0)]] * len(pairs.fork_P)),
    ):
        assert (np.diff(alignment.pair_A) >= 0).all()
        ends = {"first": pairs.first_P, "second": pairs.second_P}
        depths = []
        for side, nodes_A in (("first", alignment.first_A), ("second", alignment.second_A)):
            depths.append(tree.depth_N[nodes_A] - tree.depth_N[pairs.fork_P[alignment.pair_A]])
            for pair, node in zip(alignment.pair_A.tolist(), nodes_A.tolist(), strict=True):
                assert node in tree.path(ends[side][pair])
        assert (np.minimum(*depths) >= 1).all()
        assert alignment.distance_A.tolist() == np.maximum(*depths).tolist()
        assert tree.has_routing_N[alignment.first_A].all() and tree.has_routing_N[alignment.second_A].all()
    # One line for all is no line at all.
    assert alignment.first_A.tolist() == diff.first_A.tolist()
    assert alignment.second_A.tolist() == diff.second_A.tolist()


@pytest.mark.parametrize(
    ("lines", "line_pairs", "message"),
    [
        ({}, [], r"^line_pairs \(0\) must be as many as pairs \(1\); "),
        ({}, [[]], r"^token_lines \(\[0\] of completion 3\) must be integers \[4\]; "),
        ({3: np.zeros(5), 5: np.zeros(4)}, [[]], r"^token_lines \(\[5\] of completion 3\) must be integers \[4\]; "),
    ],
)
def test_lines_that_do_not_fit_are_named_in_one_line(plant_tree, lines, line_pairs, message):
    tree = plant_tree([[1, 9], [2, 9]], lambda *_: [[0]], 2)
    with pytest.raises(ValueError, match=message) as error:
        align_by_lines(tree, pairs_of(tree), lines, line_pairs)
    assert "\n" not in str(error.value)
