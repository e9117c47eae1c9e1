"""Simulated caches: hit rates and bytes of planted routing, closed forms, and what differs between starts."""

# Shapes: T accesses, E experts, C sizes.

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.access_order import one_after_another, side_by_side
from pathmoe_eval.locality.cache_stack import cache_hits
from pathmoe_eval.locality.expert_cache import simulate_caches


def simulated(tree, order=one_after_another, start="warm", bytes_per_expert=10, seed=0):
    found = simulate_caches(tree, order(tree), start=start, bytes_per_expert=bytes_per_expert, seed=seed)
    return found, {policy.policy: policy for policy in found.policies}


def test_planted_routing_has_the_rates_that_follow(plant_tree):
    # The prompt is 0 0, with experts 0 1. Then 20 tokens of each completion alternate between experts 2 3 and 4 5.
    tree = plant_tree(
        [[1 + (step + index) % 2 for step in range(20)] + [9] for index in range(4)],
        lambda token, *_: [[2 * token, 2 * token + 1]],
        20,
    )
    found, policies = simulated(tree)
    assert found.num_resident == tuple(range(2, 21))
    assert (found.num_accesses, found.num_tokens, found.num_wanted) == (40, 40, (80,))
    # A completion begins as the last one ended; of three places the third keeps one of the other two experts.
    assert policies["lru"].hit_rate == (4 / 80, (4 + 38) / 80, *[1.0] * 17)
    assert policies["static"].hit_rate[:3] == (0.5, 0.75, 1.0)
    assert policies["static_prefill"].hit_rate[:5] == (0, 0.25, 0.5, 0.75, 1)
    assert policies["belady"].hit_rate[2] == 1
    assert policies["static"].bytes_per_token[:3] == (10, 5, 0)
    _, from_empty = simulated(tree, start="empty")
    assert from_empty["lru"].hit_rate[2] == (80 - 2 * 4) / 80
    assert from_empty["static"].hit_rate == policies["static"].hit_rate


@given(st.integers(0, 10**6), st.sampled_from([one_after_another, side_by_side]), st.sampled_from(["empty", "warm"]))
def test_figures_are_those_of_the_second_half(random_tree, seed, order, start):
    tree = random_tree(seed, num_completions=8)
    accesses = order(tree)
    found, policies = simulated(tree, order, start)
    first = accesses.num_accesses // 2
    bounds = [0, accesses.num_accesses] if start == "warm" else [*accesses.start_Q.tolist(), accesses.num_accesses]
    assert found.num_tokens == (accesses.access_J >= first).sum()
    hits = []
    for layer in range(2):
        is_accessed_TE = accesses.is_accessed(tree, layer)
        assert found.num_wanted[layer] == is_accessed_TE[first:].sum()
        parts = [cache_hits(is_accessed_TE[a:b], "lfu", max(0, first - a)) for a, b in pairwise(bounds)]
        hits.append(np.sum(parts, axis=0)[1:])
        best = np.argsort(-is_accessed_TE[:first].sum(axis=0), kind="stable")
        static = [is_accessed_TE[first:, best[:size]].sum() for size in range(2, 7)]
        assert policies["static"].hit_rate_of_layer[layer] == pytest.approx(np.array(static) / found.num_wanted[layer])
        assert policies["lfu"].hit_rate_of_layer[layer] == pytest.approx(hits[layer] / found.num_wanted[layer])
    assert policies["lfu"].hit_rate == pytest.approx(np.sum(hits, axis=0) / sum(found.num_wanted))
    misses = sum(found.num_wanted) - np.sum(hits, axis=0)
    assert policies["lfu"].bytes_per_token == pytest.approx(10 * misses / found.num_tokens)
    assert (found.order, found.start, found.bytes_per_expert) == (accesses.name, start, 10)
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("start", ["empty", "warm"])
def test_belady_bounds_the_others_but_for_what_the_cache_holds_at_the_half(random_tree, start):
    tree = random_tree(1, num_completions=30, max_length=40, num_experts=12)
    found, policies = simulated(tree, start=start)
    for layer, wanted in enumerate(found.num_wanted):
        best_C = np.array(policies["belady"].hit_rate_of_layer[layer]) * wanted
        for name in ("lru", "lfu"):
            hits_C = np.array(policies[name].hit_rate_of_layer[layer]) * wanted
            assert np.all(best_C + np.array(found.num_resident) >= hits_C)
            assert best_C[3] > hits_C[3] + found.num_resident[3]


def test_uniform_routing_hits_as_often_as_experts_are_resident(random_tree):
    tree = random_tree(
        0, num_completions=60, max_length=200, num_experts=12, num_experts_per_tok=3, skew=0.0, vocab_size=900
    )
    found, policies = simulated(tree)
    assert found.hit_rate_null_uniform == tuple(size / 12 for size in range(3, 13))
    for name in ("lru", "lfu", "static", "static_prefill"):
        assert policies[name].hit_rate == pytest.approx(found.hit_rate_null_uniform, abs=0.02)
        assert policies[name].hit_rate_null_permuted == pytest.approx(found.hit_rate_null_uniform, abs=0.02)
    assert policies["belady"].hit_rate[2] > found.hit_rate_null_uniform[2] + 0.1


def test_runs_of_the_same_experts_are_worth_more_than_their_loads(plant_tree):
    tree = plant_tree(
        [[1 + step // 5 for step in range(40)] for _ in range(6)], lambda token, *_: [[token, token + 1]], 12
    )
    _, policies = simulated(tree)
    assert policies["lru"].hit_rate[0] > 0.8
    assert policies["lru"].hit_rate_null_permuted[0] < 0.4
    assert simulated(tree, seed=0)[1] == policies


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": "cold"}, r"^start \(cold\) must be empty or warm; "),
        ({"bytes_per_expert": 0}, r"^bytes_per_expert \(0\) must be at least 1; "),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(random_tree, fields, message):
    with pytest.raises(ValueError, match=message):
        simulated(random_tree(0), **fields)
