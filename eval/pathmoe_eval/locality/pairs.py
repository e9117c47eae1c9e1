"""Which pairs of completions are compared: chosen by how they are related and grouped, drawn evenly over forks."""

# Shapes: N nodes, C completions, P pairs, F forks, B completions on a branch.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.id_range import check_one_per_token

Relation = Literal["any", "siblings"]
Grouping = Literal["any", "within", "across"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CompletionPairs:
    """Pairs of completions of one tree, each with the fork at which they part."""

    relation: Relation
    """"any", or "siblings": neither of the two parts from another completion after the fork at which they part."""
    grouping: Grouping
    """"any", or "within" one group of equivalent programs, or "across" two of them."""
    seed: int
    """Of the draw, where there were more pairs than wanted."""
    num_available: int
    """Pairs of this kind in the tree."""
    num_forks_available: int
    """Forks at which such pairs part."""
    first_P: NDArray[np.int64]
    """Node of the one completion, the lower."""
    second_P: NDArray[np.int64]
    """Node of the other."""
    fork_P: NDArray[np.int64]
    """Their last common ancestor; pairs lie in its order."""


def completion_pairs(
    tree: GenerationTree,
    *,
    relation: Relation,
    grouping: Grouping,
    max_pairs: int,
    seed: int,
    group_C: NDArray[np.integer] | None = None,
) -> CompletionPairs:
    """Pairs of a tree's completions; above `max_pairs`, as equally many of each fork as there are.

    The forks with the fewest pairs keep all of theirs, the others as many as is left to each; what does not divide goes
    to forks drawn at random, and within a fork pairs are drawn without replacement: our choice, so that the few forks
    near the prompt, at which most pairs part, do not decide.

    Args:
        tree: the tree.
        relation: see `CompletionPairs`.
        grouping: see `CompletionPairs`.
        max_pairs: at least 1.
        seed: of the draw.
        group_C: integers [completions], in the order of `tree.completions()`: the group of each, -1 for none; needed
            unless `grouping` is "any".

    Raises:
        ValueError: a choice that does not exist, `max_pairs` below 1, or groups that are missing or of another number.
    """
    for name, value, allowed in (
        ("relation", relation, ("any", "siblings")),
        ("grouping", grouping, ("any", "within", "across")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} ({value}) must be one of {', '.join(allowed)}; change it")
    if max_pairs < 1:
        raise ValueError(f"max_pairs ({max_pairs}) must be at least 1; raise it")
    if group_C is None and grouping != "any":
        raise ValueError(f'grouping ({grouping}) must be "any" without groups; pass the group of each completion')
    completions = tree.completions()
    if group_C is not None:
        group_C = check_one_per_token(group_C, len(completions), name="group_of_completion")
    rng = np.random.default_rng(seed)
    available, kept = [], []
    for fork, branches in completion_branches(tree):
        if relation == "siblings":
            branches = [branch_B for branch_B in branches if len(branch_B) == 1]
        pairs = _pairs_across(branches)
        if grouping != "any" and group_C is not None:
            first_P, second_P = group_C[pairs]
            is_alike_P = first_P == second_P if grouping == "within" else first_P != second_P
            pairs = pairs[:, is_alike_P & (first_P >= 0) & (second_P >= 0)]
        if num_pairs := pairs.shape[1]:
            available.append(num_pairs)
            kept.append((fork, _draw(pairs, min(num_pairs, max_pairs), rng)))
    quota_F = _even_quotas(np.array(available, dtype=np.int64), max_pairs, rng)
    chosen = [(fork, _draw(pairs, quota, rng)) for (fork, pairs), quota in zip(kept, quota_F.tolist(), strict=True)]
    nodes = completions[np.concatenate([np.empty((2, 0), dtype=np.int64), *(pairs for _, pairs in chosen)], axis=1)]
    return CompletionPairs(
        relation=relation,
        grouping=grouping,
        seed=seed,
        num_available=sum(available),
        num_forks_available=len(available),
        first_P=nodes.min(axis=0),
        second_P=nodes.max(axis=0),
        fork_P=np.repeat(np.array([fork for fork, _ in chosen], dtype=np.int64), quota_F),
    )


def completion_branches(tree: GenerationTree) -> Iterator[tuple[int, list[NDArray[np.int64]]]]:
    """The forks at which completions part, in order, each with the completions behind each child that has any.

    Completions are counted in the order of `tree.completions()`; branches without a completion do not count.
    """
    is_completion_N = np.zeros(tree.num_nodes, dtype=np.int64)
    is_completion_N[tree.completions()] = 1
    behind, parents = is_completion_N.tolist(), tree.parent_N.tolist()
    for node in range(tree.num_nodes - 1, 0, -1):
        behind[parents[node]] += behind[node]
    # In an order of depth first the completions behind a node are consecutive.
    start, free = [0] * tree.num_nodes, [0] * tree.num_nodes
    branches: dict[int, list[int]] = {}
    for node in range(1, tree.num_nodes):
        if behind[node]:
            parent = parents[node]
            start[node] = free[node] = free[parent]
            free[parent] += behind[node]
            branches.setdefault(parent, []).append(node)
    depth_first_C = np.argsort([start[node] for node in tree.completions()], kind="stable")
    for fork in sorted(branches):
        if len(children := branches[fork]) > 1:
            yield fork, [depth_first_C[start[child] : start[child] + behind[child]] for child in children]


def _pairs_across(branches: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """All pairs of completions of different branches, [2, pairs]."""
    found = [np.empty((2, 0), dtype=np.int64)]
    for first_B, second_B in combinations(branches, 2):
        found.append(np.stack([np.repeat(first_B, len(second_B)), np.tile(second_B, len(first_B))]))
    return np.concatenate(found, axis=1)


def _draw(pairs: NDArray[np.int64], num_pairs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many of the pairs, in their order."""
    if num_pairs == pairs.shape[1]:
        return pairs
    return pairs[:, np.sort(rng.choice(pairs.shape[1], num_pairs, replace=False))]


def _even_quotas(available_F: NDArray[np.int64], total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `total` over all forks, at most what each has, and no two forks with some left differ by more than 1."""
    if available_F.sum() <= total:
        return available_F
    quota_F = np.zeros_like(available_F)
    while (share := (total - quota_F.sum()) // np.count_nonzero(has_more_F := quota_F < available_F)) > 0:
        quota_F[has_more_F] = np.minimum(available_F, quota_F + share)[has_more_F]
    rest = rng.choice(np.flatnonzero(has_more_F), total - quota_F.sum(), replace=False)
    quota_F[rest] += 1
    return quota_F
