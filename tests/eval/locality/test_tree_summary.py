"""Numbers of trees, planted and against a walk over each sequence; and the tree as it is drawn."""

# Shapes: N nodes.

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.generation.tree import NOT_SEARCHED
from pathmoe_eval.locality.tree_summary import MIXED, UNGROUPED, drawn_tree, tree_summary


def planted(plant_tree):
    # Three completions, of which two are the same tokens, and one sequence that was cut.
    return plant_tree([[1, 2, 9], [1, 2, 9], [1, 3, 4, 9], [5, 5]], lambda *_: [[0]], 2, is_cut=(3,))


def test_a_planted_tree_has_the_numbers_that_follow(plant_tree) -> None:
    found = tree_summary(planted(plant_tree), 20, 3)
    assert found.num_prompt_tokens == 2
    assert found.num_generated == 9  # 1, 2, 9, 9, 3, 4, 9, 5, 5
    assert (found.num_completions, found.num_distinct, found.num_cut, found.num_not_searched) == (3, 2, 1, 0)
    assert found.num_forks == 3  # after the prompt, after 1, after 1 2
    assert found.mean_children == 2
    assert found.median_completion_tokens == 3
    # Each from the prompt on, without the token that ends it, which is not fed.
    assert found.num_without_sharing == 4 + 4 + 5 + 3
    assert (found.num_forwarded, found.num_read_again) == (20, 3)


def test_forks_whose_children_were_not_searched_end_sequences_that_were_decoded(plant_tree) -> None:
    tree = plant_tree([[1, 2, 9], [1, 3], [1, 4], [5, 6], [5, 7]], lambda *_: [[0]], 2)
    end_N = tree.end_N.copy()
    for tokens in ((3,), (4,), (6,), (7,)):
        end_N[np.isin(tree.token_ids_N, tokens)] = NOT_SEARCHED
    found = tree_summary(replace(tree, end_N=end_N), 0, 0)
    assert (found.num_completions, found.num_not_searched) == (1, 4)
    # Of 1 a child was searched, of 5 none.
    assert found.num_without_sharing == 4 + 3


def test_probabilities_add_up_along_the_way(plant_tree) -> None:
    tree = planted(plant_tree)
    log_N = -np.arange(tree.num_nodes, dtype=np.float32)
    log_N[:2] = 0
    found = tree_summary(replace(tree, log_probability_N=log_N), 0, 0)
    expected = [log_N[tree.path(node)].sum() for node in tree.completions().tolist()]
    assert found.mean_completion_log_probability == pytest.approx(np.mean(expected))


def test_without_forks_there_is_no_mean_of_children(plant_tree) -> None:
    found = tree_summary(plant_tree([[1, 9]], lambda *_: [[0]], 2), 3, 0)
    assert (found.num_forks, found.mean_children) == (0, None)


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 9))
def test_segments_cover_each_drawn_completion_once(random_tree, seed: int, num_completions: int, most: int) -> None:
    tree = random_tree(seed, num_completions=num_completions)
    completions = tree.completions().tolist()
    if not completions:
        return
    drawn = drawn_tree(tree, list(range(len(completions))), most)
    json.dumps(asdict(drawn))
    leaves = [segment for segment in range(len(drawn.parent_S)) if segment not in drawn.parent_S]
    assert len(leaves) == drawn.num_completions == min(most, len(completions))
    assert sorted(drawn.height_S[leaf] for leaf in leaves) == list(range(len(leaves)))
    shown = set()
    for leaf in leaves:
        group = drawn.group_S[leaf]
        shown.add(group)
        length = tree.depth_N[completions[group]] + 1 - tree.prompt_length
        assert drawn.last_depth_S[leaf] == length
        while drawn.parent_S[leaf] >= 0:
            parent = drawn.parent_S[leaf]
            assert parent < leaf
            assert drawn.first_depth_S[leaf] == drawn.last_depth_S[parent]
            assert drawn.group_S[parent] in (group, MIXED)
            leaf = parent
        assert (leaf, drawn.first_depth_S[leaf]) == (0, 0)
    assert len(shown) == len(leaves)


def test_a_fork_lies_between_its_children_and_has_their_group_where_it_is_one(plant_tree) -> None:
    tree = planted(plant_tree)
    drawn = drawn_tree(tree, [0, UNGROUPED, 0], 9)
    # The prompt's end and the way to 1; the fork after 1; the fork after 1 2; leaves from the top.
    assert drawn.group_S[0] == MIXED
    of_leaves = {drawn.height_S[s]: drawn.group_S[s] for s in range(len(drawn.parent_S)) if s not in drawn.parent_S}
    assert of_leaves == {0.0: 0, 1.0: UNGROUPED, 2.0: 0}
    inner = sorted(drawn.height_S[s] for s in set(drawn.parent_S) - {-1})
    assert inner == [0.5, 1.25, 1.25]
    alike = drawn_tree(tree, [1, 1, 1], 9)
    assert set(alike.group_S) == {1}
