"""Other occurrences of a token, in another context: the null of what its identity alone makes alike."""

# Shapes: N nodes, A aligned positions, J nodes that may be drawn.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import GenerationTree


def draw_matches(
    tree: GenerationTree, first_A: NDArray[np.int64], second_A: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """For each pair of nodes, a node to stand in for the second, int64 [aligned], -1 where there is none.

    It is drawn uniformly among the generated nodes with routing that have the second's token id and are at another
    depth than both, so that neither it nor what is aligned with it by position can be drawn (our choice). The first and
    it then are of the same two tokens as the pair, and of contexts that have nothing to do with each other but the
    prompt and the place in the tree.
    """
    depth_N = tree.depth_N
    nodes_J = np.flatnonzero(tree.has_routing_N & (np.arange(tree.num_nodes) >= tree.prompt_length))
    num_depths = int(depth_N.max()) + 1

    def keys(token_ids: NDArray[np.integer], depth: NDArray[np.int64] | int) -> NDArray[np.int64]:
        return token_ids.astype(np.int64) * num_depths + depth

    key_J = keys(tree.token_ids_N[nodes_J], depth_N[nodes_J])
    order_J = np.argsort(key_J, kind="stable")
    nodes_J, key_J = nodes_J[order_J], key_J[order_J]

    # Nodes of one token lie together, by depth; those at the two depths that do not count are two runs among them.
    token_A = tree.token_ids_N[second_A]
    start_A, stop_A = np.searchsorted(key_J, keys(token_A, 0)), np.searchsorted(key_J, keys(token_A + 1, 0))
    depths_A = np.sort(depth_N[np.stack([first_A, second_A])], axis=0)
    run_starts_A = np.searchsorted(key_J, keys(token_A, depths_A))
    run_sizes_A = np.searchsorted(key_J, keys(token_A, depths_A + 1)) - run_starts_A
    run_sizes_A[1, depths_A[0] == depths_A[1]] = 0

    num_choices_A = stop_A - start_A - run_sizes_A.sum(axis=0)
    place_A = start_A + np.random.default_rng(seed).integers(0, np.maximum(num_choices_A, 1))
    for run_start_A, run_size_A in zip(run_starts_A, run_sizes_A, strict=True):
        place_A += np.where(place_A >= run_start_A, run_size_A, 0)
    has_choice_A = num_choices_A > 0
    drawn_A = np.full(len(first_A), -1, dtype=np.int64)
    drawn_A[has_choice_A] = nodes_J[place_A[has_choice_A]]
    return drawn_A
