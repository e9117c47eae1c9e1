"""What a search has found, in numbers, and the tree as it is drawn."""

# Shapes: N nodes, C completions, S drawn segments.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import CUT, NOT_SEARCHED, GenerationTree
from pathmoe_eval.locality.even_choice import even_choice

UNGROUPED = -1
"""A completion that did not compile."""
MIXED = -2
"""A segment that leads to completions of several groups, or to such as compiled and such as did not."""


@dataclass(frozen=True, kw_only=True)
class TreeSummary:
    """Numbers of a tree."""

    num_prompt_tokens: int
    """Tokens of the prompt."""
    num_generated: int
    """Tokens after it; what sequences share counts once."""
    num_completions: int
    """Sequences that ended by themselves."""
    num_distinct: int
    """Of these, such as no other has the tokens of."""
    num_cut: int
    """Sequences that reached the limit on their length."""
    num_not_searched: int
    """Children that were drawn and not decoded when the search stopped."""
    num_forks: int
    """Nodes with two or more children."""
    mean_children: float | None
    """Children of a fork, on average; None without forks."""
    median_completion_tokens: float
    """Tokens after the prompt of a completion, its end included."""
    mean_completion_log_probability: float
    """Natural logarithm of the probability of a completion, at temperature 1."""
    num_forwarded: int
    """Tokens that were fed to the model, by earlier processes of an interrupted search too: every prefix once, and what
    was decoded ahead and then left out by a limit."""
    num_read_again: int
    """Of these, tokens of prefixes that the last process read once more, since an earlier one had their caches."""
    num_without_sharing: int
    """Tokens that would be fed if each sequence were decoded from the prompt on its own: each that ended or was cut,
    and each up to a fork of which no child was searched."""


@dataclass(frozen=True, kw_only=True)
class DrawnTree:
    """Stretches between forks as horizontal lines: tokens to the right, leaves one below the other.

    Only the way to the completions that are drawn; the first segment begins with the prompt's end.
    """

    num_completions: int
    """Completions that are drawn: evenly chosen, in the order of the leaves, where there are more."""
    parent_S: tuple[int, ...]
    """Segment that each comes from; -1 for the first."""
    first_depth_S: tuple[int, ...]
    """Tokens after the prompt where it begins."""
    last_depth_S: tuple[int, ...]
    """Where it ends."""
    height_S: tuple[float, ...]
    """Number of the leaf, from 0; of a fork the mean over its children's first and last."""
    group_S: tuple[int, ...]
    """Rank of the group of equivalent programs to which it leads, 0 for the largest; or `UNGROUPED`, or `MIXED`."""


def tree_summary(tree: GenerationTree, num_forwarded: int, num_read_again: int) -> TreeSummary:
    """Numbers of a tree.

    Args:
        tree: with completions.
        num_forwarded: tokens that were fed to the model.
        num_read_again: of these, those that had been fed before.
    """
    completions, forks = tree.completions(), tree.forks()
    lengths_C = tree.depth_N[completions] + 1 - tree.prompt_length
    ids = {tuple(tree.token_ids_N[tree.path(node)].tolist()) for node in completions.tolist()}
    num_fed_N = tree.depth_N + tree.has_routing_N
    leaves = tree.leaves()
    searched = leaves[tree.end_N[leaves] != NOT_SEARCHED]
    num_unsearched_N = np.bincount(tree.parent_N[leaves[tree.end_N[leaves] == NOT_SEARCHED]], minlength=tree.num_nodes)
    open_ends = np.flatnonzero((num_unsearched_N > 0) & (num_unsearched_N == tree.num_children_N))
    return TreeSummary(
        num_prompt_tokens=tree.prompt_length,
        num_generated=tree.num_nodes - tree.prompt_length,
        num_completions=len(completions),
        num_distinct=len(ids),
        num_cut=int(np.count_nonzero(tree.end_N == CUT)),
        num_not_searched=int(np.count_nonzero(tree.end_N == NOT_SEARCHED)),
        num_forks=len(forks),
        mean_children=float(tree.num_children_N[forks].mean()) if len(forks) else None,
        median_completion_tokens=float(np.median(lengths_C)),
        mean_completion_log_probability=float(_total_log_probability(tree)[completions].mean()),
        num_forwarded=num_forwarded,
        num_read_again=num_read_again,
        num_without_sharing=int(num_fed_N[searched].sum() + num_fed_N[open_ends].sum()),
    )


def drawn_tree(tree: GenerationTree, group_C: Sequence[int], max_completions: int) -> DrawnTree:
    """The way to completions, as segments.

    Args:
        tree: with completions.
        group_C: the group of each completion, in the order of `tree.completions()`: its rank, or `UNGROUPED`.
        max_completions: to draw, at least 1.
    """
    completions, parents = tree.completions().tolist(), tree.parent_N.tolist()
    in_order = sorted(range(len(completions)), key=lambda place: tree.path(completions[place]).tolist())
    chosen = [in_order[place] for place in even_choice(len(in_order), max_completions)]
    leaf_of = {completions[place]: number for number, place in enumerate(chosen)}
    group_of: dict[int, set[int]] = {completions[place]: {group_C[place]} for place in chosen}
    heights: dict[int, list[float]] = {}
    children: dict[int, list[int]] = {}
    ends: list[int] = []  # last nodes of segments, children before parents
    root = tree.prompt_length - 1
    for node in range(tree.num_nodes - 1, root - 1, -1):
        if node not in group_of:
            continue
        below = children.get(node, [])
        if node in leaf_of:
            heights[node] = [float(leaf_of[node])]
        if node in leaf_of or len(below) > 1 or node == root:
            ends.append(node)
        heights[node] = [(min(heights[node]) + max(heights[node])) / 2]
        if node > root:
            parent = parents[node]
            children.setdefault(parent, []).append(node)
            heights.setdefault(parent, []).extend(heights[node])
            group_of.setdefault(parent, set()).update(group_of[node])
    return _as_segments(tree, ends[::-1], heights, group_of, len(chosen))


def _as_segments(
    tree: GenerationTree,
    ends: Sequence[int],
    heights: dict[int, list[float]],
    group_of: dict[int, set[int]],
    num_completions: int,
) -> DrawnTree:
    """Segments by their last nodes, ascending, so that parents come first."""
    segment_of = {node: segment for segment, node in enumerate(ends)}
    parent_S, first_S = [-1], [0]
    for node in ends[1:]:
        before = int(tree.parent_N[node])
        while before not in segment_of:
            before = int(tree.parent_N[before])
        parent_S.append(segment_of[before])
        first_S.append(int(tree.depth_N[before]) + 1 - tree.prompt_length)
    return DrawnTree(
        num_completions=num_completions,
        parent_S=tuple(parent_S),
        first_depth_S=tuple(first_S),
        last_depth_S=tuple((tree.depth_N[list(ends)] + 1 - tree.prompt_length).tolist()),
        height_S=tuple(heights[node][0] for node in ends),
        group_S=tuple(next(iter(found)) if len(found := group_of[node]) == 1 else MIXED for node in ends),
    )


def _total_log_probability(tree: GenerationTree) -> NDArray[np.float64]:
    """Of all tokens up to each node, float64 [nodes]."""
    total: list[float] = []
    for parent, of_token in zip(tree.parent_N.tolist(), tree.log_probability_N.tolist(), strict=True):
        total.append(of_token + (total[parent] if total else 0.0))
    return np.array(total)
