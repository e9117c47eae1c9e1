"""Hits of a cache of experts of every size at once: Mattson's stack algorithm, for accesses of several experts."""

# Shapes: T accesses, E experts, C sizes of the cache.

from __future__ import annotations

from heapq import heappop, heappush, heappushpop
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Policy = Literal["lru", "lfu", "belady"]
POLICIES: tuple[Policy, ...] = ("lru", "lfu", "belady")


def cache_hits(is_accessed_TE: NDArray[np.bool_], policy: Policy, first_measured: int = 0) -> NDArray[np.int64]:
    """Experts that were resident when they were wanted, for caches of 1, 2, ..., E experts, int64 [sizes].

    An access wants a set of experts, all resident at the same time: those that are resident are hits, the others are
    loaded, each at the same cost, whatever the cache holds. What makes room is never of the set; of a set larger than
    the cache, which has to be served in parts, the cache then holds those that the policy ranks first. The cache is
    empty at the beginning.

    Whom a policy keeps depends on a rank of the experts that does not depend on the cache's size, so that a smaller
    cache holds part of what a larger one does, and one pass gives all sizes (Mattson, Gecsei, Slutz and Traiger,
    Evaluation techniques for storage hierarchies, 1970; sets of experts are our extension). The ranks: "lru", the
    latest access first; "lfu", the most accesses since the beginning, also from before an expert last left ("perfect"
    LFU), then the latest; "belady", the next access first, which no policy can beat; ties go to the lower expert id.

    Args:
        is_accessed_TE: bool [accesses, experts].
        policy: one of these.
        first_measured: hits before this access do not count.
    """
    num_accesses, num_experts = is_accessed_TE.shape
    access_of, expert_of = np.nonzero(is_accessed_TE)
    rank_of = _ranks(is_accessed_TE, policy)[access_of, expert_of] * num_experts + expert_of
    order = np.lexsort((rank_of, access_of))
    bounds = np.searchsorted(access_of, np.arange(num_accesses + 1)).tolist()
    experts, ranks = expert_of[order].tolist(), rank_of[order].tolist()

    found_at = [0] * num_experts
    latest, rank = [-1] * num_experts, [0] * num_experts
    stack: list[int] = []  # a cache of C experts holds the first C
    for access, (start, stop) in enumerate(pairwise(bounds)):
        wanted = experts[start:stop]
        for expert in wanted:
            latest[expert] = access
        counts = access >= first_measured
        num_wanted, num_found, above = stop - start, 0, wanted[:]
        waiting: list[int] = []  # ranks of those that the caches so far hold, and have not yet found a place again
        for place, expert in enumerate(stack):
            if latest[expert] == access:
                found_at[place] += counts
                num_found += 1
                if place >= num_wanted:
                    above.append(heappop(waiting) % num_experts)
                if num_found == num_wanted:
                    above += stack[place + 1 :]
                    break
            elif place < num_wanted:
                heappush(waiting, rank[expert])
            else:
                above.append(heappushpop(waiting, rank[expert]) % num_experts)
        else:
            above += [of_expert % num_experts for of_expert in sorted(waiting)]
        stack = above
        for expert, of_expert in zip(wanted, ranks[start:stop], strict=True):
            rank[expert] = of_expert
    return np.cumsum(found_at)


def _ranks(is_accessed_TE: NDArray[np.bool_], policy: Policy) -> NDArray[np.int64]:
    """Rank of each expert after each access that wants it, int64 [accesses, experts], the one to keep lowest."""
    num_accesses = len(is_accessed_TE)
    time_T = np.arange(num_accesses)[:, None]
    if policy == "lru":
        return np.broadcast_to(num_accesses - time_T, is_accessed_TE.shape)
    if policy == "lfu":
        count_TE = np.cumsum(is_accessed_TE, axis=0)
        return (num_accesses - count_TE) * (num_accesses + 1) + num_accesses - time_T
    # From the end: the earliest access at or after each time, then the one after the next time.
    next_TE = np.minimum.accumulate(np.where(is_accessed_TE, time_T, num_accesses)[::-1], axis=0)[::-1]
    return np.concatenate([next_TE[1:], np.full((1, next_TE.shape[1]), num_accesses)])
