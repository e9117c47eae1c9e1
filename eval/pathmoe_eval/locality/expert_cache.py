"""What locality is worth to whoever keeps some experts in fast memory: hit rates and bytes moved, by cache size."""

# Shapes: T accesses, L MoE layers, E experts, C sizes of the cache, K experts per token.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.locality.access_order import AccessOrder
from pathmoe_eval.locality.cache_stack import POLICIES, cache_hits

Start = Literal["empty", "warm"]


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """One policy; tuples have one entry for each of `CacheSimulation.num_resident`."""

    policy: str
    """"lru", "lfu" and "belady" as in `cache_hits`; "static", the experts most wanted in the first half of the
    accesses, and "static_prefill", those most picked in the prompt, which stay (ties: the lower id), while others pass
    through memory beside them and are loaded each time."""
    hit_rate: tuple[float, ...]
    """Hits over experts wanted, of all layers."""
    hit_rate_null_permuted: tuple[float, ...]
    """The same with the accesses in random order, one order for all layers: what uneven loads alone are worth."""
    hit_rate_of_layer: tuple[tuple[float, ...], ...]
    """`hit_rate` of each layer."""
    bytes_per_token: tuple[float, ...]
    """Bytes loaded, of all layers, over tokens."""


@dataclass(frozen=True, kw_only=True)
class CacheSimulation:
    """A cache of experts in each layer, over the recorded routing of a tree's completions.

    The second half of the accesses counts; the first only fills the caches and chooses the static experts. Over all
    accesses from an empty cache neither "lru" nor "lfu" has more hits than "belady"; over a half, neither has more by
    more than num_resident. Static experts may: what passes by needs room beside them, of k experts.
    """

    order: str
    """"samples" or "parallel": see `AccessOrder`."""
    start: str
    """"warm": a sample finds the cache, and the counts of "lfu", as the one before left them; "empty": it finds
    nothing. Static experts are there in both."""
    seed: int
    """Of the random order."""
    num_accesses: int
    """Accesses that count."""
    num_tokens: int
    """Tokens that they serve."""
    num_wanted: tuple[int, ...]
    """Experts that they want, by layer."""
    bytes_per_expert: int
    """Bytes that a load moves."""
    num_resident: tuple[int, ...]
    """Experts of a layer that the cache holds: from those of one token to all."""
    hit_rate_null_uniform: tuple[float, ...]
    """C/E: that of any policy but "belady" once the cache is full, where each set is drawn uniformly, independently."""
    policies: tuple[CachePolicy, ...]
    """Each policy."""


def simulate_caches(
    tree: GenerationTree, order: AccessOrder, *, start: Start, bytes_per_expert: int, seed: int
) -> CacheSimulation:
    """Simulate a cache of each policy and size in each layer.

    Args:
        tree: the tree.
        order: `one_after_another` or `side_by_side` of this tree.
        start: see `CacheSimulation`.
        bytes_per_expert: of one expert's weights.
        seed: of the random order that the null has.

    Raises:
        ValueError: another start, or bytes below 1.
    """
    if start not in ("empty", "warm"):
        raise ValueError(f"start ({start}) must be empty or warm; change it")
    if bytes_per_expert < 1:
        raise ValueError(f"bytes_per_expert ({bytes_per_expert}) must be at least 1; pass the size of an expert")
    first = order.num_accesses // 2
    start_T = np.append(order.start_Q if start == "empty" else 0, order.num_accesses)
    permuted_T = np.random.default_rng(seed).permutation(order.num_accesses)
    hits: dict[str, list[NDArray[np.int64]]] = {}
    null_hits: dict[str, list[NDArray[np.int64]]] = {}
    wanted: list[int] = []
    null_wanted: list[int] = []
    for layer in range(tree.num_layers):
        is_accessed_TE = order.is_accessed(tree, layer)
        prompt_ids = tree.expert_ids_NLK[: tree.prompt_length, layer][tree.has_routing_N[: tree.prompt_length]]
        picks_E = np.bincount(prompt_ids.ravel(), minlength=tree.num_experts)
        for is_wanted_TE, into, numbers in (
            (is_accessed_TE, hits, wanted),
            (is_accessed_TE[permuted_T], null_hits, null_wanted),
        ):
            for policy, hits_C in _hits_of_policies(is_wanted_TE, start_T, first, picks_E).items():
                into.setdefault(policy, []).append(hits_C[tree.num_experts_per_tok - 1 :])
            numbers.append(int(is_wanted_TE[first:].sum()))
    num_tokens = int(np.count_nonzero(order.access_J >= first))
    num_resident = range(tree.num_experts_per_tok, tree.num_experts + 1)
    return CacheSimulation(
        order=order.name,
        start=start,
        seed=seed,
        num_accesses=order.num_accesses - first,
        num_tokens=num_tokens,
        num_wanted=tuple(wanted),
        bytes_per_expert=bytes_per_expert,
        num_resident=tuple(num_resident),
        hit_rate_null_uniform=tuple(size / tree.num_experts for size in num_resident),
        policies=tuple(
            _policy(policy, np.array(hits[policy]), wanted, np.array(null_hits[policy]), null_wanted,
                    bytes_per_expert / num_tokens)
            for policy in hits
        ),
    )  # fmt: skip


def _hits_of_policies(
    is_accessed_TE: NDArray[np.bool_], start_T: NDArray[np.int64], first: int, picks_E: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Hits of each policy at or after access `first`, for caches of 1, ..., E experts, int64 [sizes]."""
    found = {
        str(policy): np.sum(
            [
                cache_hits(is_accessed_TE[begin:end], policy, max(first - begin, 0))
                for begin, end in zip(start_T[:-1].tolist(), start_T[1:].tolist(), strict=True)
                if end > first
            ],
            axis=0,
        )
        for policy in POLICIES
    }
    wanted_E = is_accessed_TE[first:].sum(axis=0)
    for name, count_E in (("static", is_accessed_TE[:first].sum(axis=0)), ("static_prefill", picks_E)):
        found[name] = np.cumsum(wanted_E[np.argsort(-count_E, kind="stable")])
    return found


def _policy(
    policy: str,
    hits_LC: NDArray[np.int64],
    wanted: list[int],
    null_hits_LC: NDArray[np.int64],
    null_wanted: list[int],
    bytes_per_token: float,
) -> CachePolicy:
    misses_C = sum(wanted) - hits_LC.sum(axis=0)
    return CachePolicy(
        policy=policy,
        hit_rate=tuple((hits_LC.sum(axis=0) / sum(wanted)).tolist()),
        hit_rate_null_permuted=tuple((null_hits_LC.sum(axis=0) / sum(null_wanted)).tolist()),
        hit_rate_of_layer=tuple(map(tuple, (hits_LC / np.array(wanted)[:, None]).tolist())),
        bytes_per_token=tuple((misses_C * bytes_per_token).tolist()),
    )
