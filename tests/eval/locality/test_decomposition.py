"""Same and different tokens apart: trees with planted overlaps give them, and random routing gives the nulls."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.locality.alignment import align_by_diff, align_by_position
from pathmoe_eval.locality.decomposition import token_identity
from pathmoe_eval.locality.pairs import completion_pairs

SETTINGS = Bootstrap(num_resamples=50, seed=0, confidence=0.95)


def decompose(tree, align=align_by_position, distance_starts=(1, 4), num_permutations=99, **fields):
    kind = {"relation": "any", "grouping": "any", "max_pairs": 10**6, "seed": 0} | fields
    pairs = completion_pairs(tree, **kind)
    return token_identity(
        tree,
        pairs,
        align(tree, pairs),
        distance_starts=distance_starts,
        seed=1,
        num_permutations=num_permutations,
        settings=SETTINGS,
    )


def random_completions(num_completions, length, num_tokens, seed=0):
    return np.random.default_rng(seed).integers(0, num_tokens, (num_completions, length)).tolist()


def test_routing_by_token_id_alone_is_all_identity(plant_tree):
    tree = plant_tree(random_completions(12, 30, 4), lambda token, *_: [[2 * token, 2 * token + 1]] * 3, 8)
    found = decompose(tree)
    assert found.same_token.jaccard == found.same_token.jaccard_pooled == 1
    assert found.same_token.jaccard_null_matched == 1
    assert found.different_token.jaccard == found.different_token.jaccard_null_matched == 0
    assert found.difference == 1
    assert found.difference_interval == (1, 1)
    assert found.permutation.p_value == 0.01
    assert found.same_token.multiple == 7  # k / (2E - k) = 2 / 14
    assert found.same_token.multiple_exact == pytest.approx(1 / (12 / 28 / 3 + 1 / 28))
    assert found.same_token.jaccard_of_layer == (1, 1, 1)


def test_routing_by_position_alone_is_all_context(plant_tree):
    tree = plant_tree(random_completions(12, 30, 4), lambda _, depth, __: [[2 * depth % 64, 2 * depth % 64 + 1]], 64)
    found = decompose(tree)
    assert found.same_token.jaccard == found.different_token.jaccard == 1
    assert found.same_token.jaccard_null_matched == found.different_token.jaccard_null_matched == 0
    assert found.difference == 0
    assert found.permutation.p_value == 1


def test_a_planted_overlap_comes_out_by_layer_and_distance(plant_tree):
    # Layer 0: all tokens alike. Layer 1: one of two experts in common, J = 1/3, up to a distance of 3, then none.
    def experts(_, depth, node):
        own = 2 + node % 20
        return [[0, 1], [0, own] if depth <= 4 else [own, 22 + node % 20]]

    tree = plant_tree([[1, 2, 3, 4, 5, 6, 7], [8, 2, 9, 4, 10, 6, 11]], experts, 42)
    found = decompose(tree)
    # Of distances 1 to 6, the even ones have the same token: only that at 2 overlaps in layer 1, J = 1/3.
    assert found.same_token.num_positions == found.different_token.num_positions == 3
    assert found.same_token.jaccard_of_layer == pytest.approx((1, 1 / 9))
    assert found.different_token.jaccard_of_layer == pytest.approx((1, 2 / 9))
    assert [of.jaccard for of in found.same_token.distances] == pytest.approx([2 / 3, 1 / 2])
    assert [of.num_positions for of in found.same_token.distances] == [1, 2]
    assert found.difference == pytest.approx((1 / 9 - 2 / 9) / 2)
    assert found.difference_interval is None  # one fork
    assert found.num_without_routing == 1


def test_the_order_of_means_is_pairs_before_layers_and_after_positions(plant_tree):
    # A long pair with J = 0 and a short one with J = 1 have the mean 1/2, whatever their lengths.
    long, short = [5] * 9, [6] * 3

    def experts(_, depth, node):
        return [[0]] if depth <= 2 or node in short_nodes else [[1 + node % 30]]

    short_nodes: set[int] = set()
    completions = [[1, 1, *long], [1, 2, *long], [2, 3, *short], [2, 4, *short]]
    shape = plant_tree(completions, lambda *_: [[0]], 31)
    short_nodes.update(node for end in shape.completions()[2:].tolist() for node in shape.path(end).tolist())
    found = decompose(plant_tree(completions, experts, 31), relation="siblings")
    assert found.num_pairs == found.num_forks == 2
    assert found.same_token.jaccard == pytest.approx(0.5)
    assert found.same_token.jaccard_pooled == pytest.approx(2 / 10)


@pytest.mark.parametrize(("num_experts", "num_picks"), [(16, 4), (64, 8)])
def test_uniform_random_routing_gives_the_nulls(random_tree, num_experts, num_picks):
    tree = random_tree(
        5, num_completions=60, max_length=120, num_experts=num_experts, num_experts_per_tok=num_picks, skew=0.0
    )
    found = decompose(tree, max_pairs=400)
    for kind in (found.same_token, found.different_token):
        assert kind.num_positions > 4000
        assert kind.jaccard_pooled == pytest.approx(found.jaccard_null_uniform, rel=0.03)
        assert kind.jaccard_null_matched == pytest.approx(found.jaccard_null_uniform, rel=0.05)
    assert found.jaccard_null_uniform_ratio == num_picks / (2 * num_experts - num_picks)


def test_what_the_result_says_of_its_choices(random_tree):
    tree = random_tree(2, num_completions=12)
    found = decompose(tree, align=align_by_diff, max_pairs=7, seed=4)
    assert (found.alignment, found.relation, found.grouping, found.seed) == ("diff", "any", "any", 4)
    assert (found.num_pairs, found.seed_of_matches, found.num_resamples) == (7, 1, 50)
    num_completions = len(tree.completions())
    assert found.num_pairs_available == num_completions * (num_completions - 1) // 2
    json.dumps(asdict(found), allow_nan=False)


def test_a_tree_without_pairs_has_no_figures(plant_tree):
    found = decompose(plant_tree([[1, 2]], lambda *_: [[0]], 2))
    assert found.num_pairs == found.same_token.num_positions == 0
    assert found.difference is found.difference_interval is found.permutation is found.same_token.jaccard is None
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("starts", [(), (2, 3), (1, 5, 5), (1, 5, 3)])
def test_distances_that_do_not_ascend_are_refused(random_tree, starts):
    with pytest.raises(ValueError, match=r"^distance_starts \(\[.*\]\) must ascend from 1; "):
        decompose(random_tree(0), distance_starts=starts)
