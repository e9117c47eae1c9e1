"""The experts that decoding asks for, access by access: one sample after another, or all of them side by side."""

# Shapes: T accesses, E experts, Q sequences, J tokens, M samples, S steps, K experts per token.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.locality.even_choice import even_choice
from pathmoe_eval.locality.union_growth import sample_nodes


@dataclass(frozen=True, kw_only=True, eq=False)
class AccessOrder:
    """Accesses of generated tokens, each of one token, or of all that a step decodes together."""

    name: Literal["samples", "parallel"]
    """"samples": one after another, each from its first generated token on, also through what it shares with others;
    "parallel": step by step, an access being the union of the samples that go on."""
    node_J: NDArray[np.int64]
    """Node of each token."""
    access_J: NDArray[np.int64]
    """Access that it is part of, ascending."""
    num_accesses: int
    """Accesses of all sequences."""
    start_Q: NDArray[np.int64]
    """First access of each sequence: of each sample, or of the one that is all steps."""

    def is_accessed(self, tree: GenerationTree, layer: int) -> NDArray[np.bool_]:
        """Experts of a layer that each access asks for, bool [accesses, experts]."""
        is_accessed_TE = np.zeros((self.num_accesses, tree.num_experts), dtype=np.bool_)
        is_accessed_TE[self.access_J[:, None], tree.expert_ids_NLK[self.node_J, layer]] = True
        return is_accessed_TE


def one_after_another(tree: GenerationTree, max_samples: int | None = None) -> AccessOrder:
    """Completions in their order, a token at a time.

    Args:
        tree: the tree.
        max_samples: completions at most, evenly chosen in their order; None takes all.

    Raises:
        ValueError: no completion has a generated token with routing.
    """
    node_MS = _some_nodes(tree, max_samples)
    has_node_MS = node_MS >= 0
    node_J = node_MS[has_node_MS]
    lengths_M = has_node_MS.sum(axis=1)
    start_M = np.cumsum(lengths_M) - lengths_M
    return AccessOrder(
        name="samples",
        node_J=node_J,
        access_J=np.arange(len(node_J)),
        num_accesses=len(node_J),
        start_Q=start_M[lengths_M > 0],
    )


def side_by_side(tree: GenerationTree, max_samples: int | None = None) -> AccessOrder:
    """Completions together, a step at a time, from the first generated tokens on.

    Args:
        tree: the tree.
        max_samples: completions at most, evenly chosen in their order; None takes all.

    Raises:
        ValueError: no completion has a generated token with routing.
    """
    node_SM = _some_nodes(tree, max_samples).T
    step_J, sample_J = np.nonzero(node_SM >= 0)
    return AccessOrder(
        name="parallel",
        node_J=node_SM[step_J, sample_J],
        access_J=step_J,
        num_accesses=int(step_J[-1]) + 1,
        start_Q=np.zeros(1, dtype=np.int64),
    )


def _some_nodes(tree: GenerationTree, max_samples: int | None) -> NDArray[np.int64]:
    node_MS = sample_nodes(tree)
    # Completions that were never fed a generated token ask for nothing.
    node_MS = node_MS[(node_MS >= 0).any(axis=1)]
    if not len(node_MS):
        num_completions = len(tree.completions())
        raise ValueError(
            f"tree.completions ({num_completions}) must have generated tokens with routing; generate more of them"
        )
    return node_MS if max_samples is None else node_MS[even_choice(len(node_MS), max_samples)]
