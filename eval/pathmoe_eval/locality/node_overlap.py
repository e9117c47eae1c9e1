"""Jaccard of the expert sets of pairs of a tree's nodes, layer by layer."""

# Shapes: N nodes, L MoE layers, A pairs of nodes, W words of a set, K experts per token.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.layers.expert_sets import set_masks, set_sizes
from pathmoe_eval.layers.layer_overlap import jaccard_of_sizes


class NodeOverlap:
    """The expert sets of a tree's nodes as bit masks, and how alike two of them are."""

    def __init__(self, tree: GenerationTree) -> None:
        """Read the sets of all nodes with routing."""
        self.has_routing_N = tree.has_routing_N
        ids_KLN = np.ascontiguousarray(tree.expert_ids_NLK[tree.has_routing_N].transpose(2, 1, 0))
        routed_WLN = set_masks(ids_KLN, tree.num_experts)
        shape = (*routed_WLN.shape[:2], tree.num_nodes)
        self._masks_WLN: NDArray[np.unsignedinteger] = np.zeros(shape, dtype=routed_WLN.dtype)
        self._masks_WLN[:, :, tree.has_routing_N] = routed_WLN
        self._jaccard_K = jaccard_of_sizes(tree.num_experts_per_tok)

    def jaccard(self, first_A: NDArray[np.integer], second_A: NDArray[np.integer]) -> NDArray[np.float64]:
        """|A n B| / |A u B| of pairs of nodes with routing, float64 [layers, pairs].

        Raises:
            ValueError: a node without routing.
        """
        for nodes_A in (first_A, second_A):
            if not (has_A := self.has_routing_N[nodes_A]).all():
                node = int(nodes_A[np.argmin(has_A)])
                raise ValueError(f"node ({node}) must have routing; leave out tokens that were never fed to the model")
        shared_WLA = self._masks_WLN[:, :, first_A] & self._masks_WLN[:, :, second_A]
        return self._jaccard_K[set_sizes(shared_WLA)]
