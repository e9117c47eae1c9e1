"""A tree while it is built: segments are put into it in the order of the search, which numbers the nodes."""

# Shapes: P tokens of the prompt, N nodes, L MoE layers, E experts, K experts per token.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import GOES_ON, NOT_SEARCHED, GenerationTree


class GrowingTree:
    """Lists of what `GenerationTree` has arrays of."""

    def __init__(self, prompt_ids: Sequence[int], prompt_expert_ids_PLK: NDArray[np.unsignedinteger]) -> None:
        """Begin with the prompt and its routing."""
        self.prompt_length = len(prompt_ids)
        self._parents = list(range(-1, self.prompt_length - 1))
        self._tokens = list(prompt_ids)
        self._log_probabilities = [0.0] * self.prompt_length
        self._routing: list[NDArray[np.unsignedinteger] | None] = list(prompt_expert_ids_PLK)
        self._ends = [GOES_ON] * self.prompt_length
        self._masses = [float("nan")] * self.prompt_length

    def add(self, parent: int, token: int, log_probability: float) -> int:
        """A new node, not searched yet; its number."""
        self._parents.append(parent)
        self._tokens.append(token)
        self._log_probabilities.append(log_probability)
        self._routing.append(None)
        self._ends.append(NOT_SEARCHED)
        self._masses.append(float("nan"))
        return len(self._parents) - 1

    def set_end(self, node: int, end: int) -> None:
        """How a node ends."""
        self._ends[node] = end

    def set_routing(self, node: int, expert_ids_LK: NDArray[np.unsignedinteger]) -> None:
        """Where a node's token was routed."""
        self._routing[node] = expert_ids_LK

    def set_fork(self, node: int, mass: float) -> None:
        """A node after which the search forks."""
        self._masses[node] = mass

    def log_probability(self, node: int) -> float:
        """Of a node's token given all before it."""
        return self._log_probabilities[node]

    def token_ids_to(self, node: int) -> list[int]:
        """The tokens from the prompt's first to a node's."""
        tokens = []
        while node >= 0:
            tokens.append(self._tokens[node])
            node = self._parents[node]
        return tokens[::-1]

    def finished(self, num_experts: int, vocab_size: int) -> GenerationTree:
        """The tree as it is."""
        example_LK = self._routing[0]
        assert example_LK is not None
        empty_LK = np.zeros_like(example_LK)
        expert_ids_NLK = np.stack([empty_LK if ids_LK is None else ids_LK for ids_LK in self._routing])
        return GenerationTree(
            num_layers=example_LK.shape[0],
            num_experts=num_experts,
            num_experts_per_tok=example_LK.shape[1],
            vocab_size=vocab_size,
            prompt_length=self.prompt_length,
            parent_N=np.array(self._parents, dtype=np.int64),
            token_ids_N=np.array(self._tokens, dtype=np.int32),
            log_probability_N=np.array(self._log_probabilities, dtype=np.float32),
            expert_ids_NLK=expert_ids_NLK.astype(np.uint8 if num_experts <= 1 << 8 else np.uint16),
            has_routing_N=np.array([ids_LK is not None for ids_LK in self._routing]),
            end_N=np.array(self._ends, dtype=np.uint8),
            fork_mass_N=np.array(self._masses, dtype=np.float32),
        )
