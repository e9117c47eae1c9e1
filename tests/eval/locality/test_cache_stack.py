"""Caches of all sizes at once against caches of each, and Belady's against every choice that there is."""

# Shapes: T accesses, E experts, C sizes of the cache.

import functools
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.locality.cache_stack import POLICIES, cache_hits


def keep_first(accesses, time, expert, policy):
    """What a policy ranks by, the one to keep first; `accesses` are sets."""
    past = [t for t in range(time + 1) if expert in accesses[t]]
    future = [t for t in range(time + 1, len(accesses)) if expert in accesses[t]]
    return {
        "lru": (-past[-1], expert),
        "lfu": (-len(past), -past[-1], expert),
        "belady": (future[0] if future else len(accesses), expert),
    }[policy]


def one_cache(accesses, policy, size, first_measured=0):
    cache, hits = set(), 0
    for time, wanted in enumerate(accesses):
        hits += len(wanted & cache) * (time >= first_measured)
        rank = functools.partial(keep_first, accesses, time, policy=policy)
        cache = {*(sorted(wanted, key=rank) + sorted(cache - wanted, key=rank))[:size]}
    return hits


def most_hits(accesses, size):
    """Over all that a cache may keep: of a larger set a part, else the set and any of what was there."""
    best = {frozenset(): 0}
    for wanted in accesses:
        after: dict[frozenset[int], int] = {}
        for cache, hits in best.items():
            rest = cache - wanted
            room = range(min(len(rest), size - len(wanted)) + 1)
            kept = (
                map(frozenset, combinations(wanted, size))
                if len(wanted) >= size
                else (frozenset({*wanted, *chosen}) for count in room for chosen in combinations(rest, count))
            )
            for choice in kept:
                after[choice] = max(after.get(choice, 0), hits + len(wanted & cache))
        best = after
    return max(best.values())


def trace(seed, num_accesses, num_experts, density):
    is_accessed_TE = np.random.default_rng(seed).random((num_accesses, num_experts)) < density
    return is_accessed_TE, [set(np.flatnonzero(row).tolist()) for row in is_accessed_TE]


TRACES = st.builds(
    trace, st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6), st.sampled_from([0.1, 0.3, 0.5, 0.8])
)


@given(TRACES, st.integers(0, 12))
def test_every_size_is_that_of_one_cache(traced, first_measured):
    is_accessed_TE, accesses = traced
    for policy in POLICIES:
        sizes = range(1, is_accessed_TE.shape[1] + 1)
        expected = [one_cache(accesses, policy, size, first_measured) for size in sizes]
        assert cache_hits(is_accessed_TE, policy, first_measured).tolist() == expected


@given(st.builds(trace, st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 5), st.sampled_from([0.3, 0.5])))
def test_no_choice_beats_belady(traced):
    is_accessed_TE, accesses = traced
    best = [most_hits(accesses, size) for size in range(1, is_accessed_TE.shape[1] + 1)]
    assert cache_hits(is_accessed_TE, "belady").tolist() == best


@given(st.integers(0, 10**6))
def test_long_traces_keep_the_order_of_policies_and_sizes(seed):
    is_accessed_TE, _ = trace(seed, 300, 12, 0.25)
    hits = {policy: cache_hits(is_accessed_TE, policy) for policy in POLICIES}
    for hits_C in hits.values():
        assert (np.diff(hits_C) >= 0).all()
        assert (hits["belady"] >= hits_C).all()
        # With room for all only the first access of each expert misses.
        assert hits_C[-1] == is_accessed_TE.sum() - is_accessed_TE.any(axis=0).sum()


def test_a_cycle_defeats_lru_and_not_belady():
    is_accessed_TE = np.tile(np.eye(4, dtype=bool), (25, 1))
    assert cache_hits(is_accessed_TE, "lru").tolist() == [0, 0, 0, 96]
    # Of three places two keep what they have for a round: two of three accesses hit after the first three.
    assert cache_hits(is_accessed_TE, "belady")[2] == pytest.approx(2 / 3 * 97, abs=1)


def test_a_favourite_stays_in_lfu_alone():
    # Expert 0 often, then two others by turns and 0 once more.
    order = [0, 0, 0, 1, 2, 1, 2, 0]
    is_accessed_TE = np.eye(3, dtype=bool)[order]
    assert cache_hits(is_accessed_TE, "lru").tolist()[1] == 2 + 2
    assert cache_hits(is_accessed_TE, "lfu").tolist()[1] == 2 + 1
