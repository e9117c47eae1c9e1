"""Tokens that continue one prompt, as a tree: what a search generated, and how each token was routed."""

# Shapes: N nodes, L MoE layers, K experts per token, P pairs of nodes.

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pathmoe_eval.id_range import check_id_range
from pathmoe_eval.routing_shape import RoutingShape

GOES_ON = 0
END_OF_SEQUENCE = 1
CUT = 2
NOT_SEARCHED = 3

# What a sum of many probabilities in float32 may be above 1.
_ROUNDING = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class GenerationTree:
    """A tree in which each node is a token and its parent the token before it.

    Sequences share all nodes up to their last common ancestor. A fork is a node with two or more children.

    Raises:
        ValueError: a field that contradicts its description, or another field.
    """

    num_layers: int
    """MoE layers."""
    num_experts: int
    """Experts of each layer."""
    num_experts_per_tok: int
    """Experts that each token is sent to in each layer."""
    vocab_size: int
    """Token ids lie in [0, vocab_size)."""
    prompt_length: int
    """Nodes of the prompt: the first ones, each the parent of the next."""
    parent_N: NDArray[np.int64]
    """int64 [nodes]: -1 for node 0, else below the node's own number."""
    token_ids_N: NDArray[np.int32]
    """int32 [nodes]."""
    log_probability_N: NDArray[np.float32]
    """float32 [nodes]: of the token given all before it, natural logarithm, at temperature 1; 0 in the prompt."""
    expert_ids_NLK: NDArray[np.unsignedinteger]
    """uint8 or uint16 [nodes, layers, experts per token]: of the token as input, highest weight first; of no meaning
    where `has_routing_N` is False."""
    has_routing_N: NDArray[np.bool_]
    """bool [nodes]: False where the token was never fed to the model, such as the last of a completion."""
    end_N: NDArray[np.uint8]
    """uint8 [nodes]: 0 goes on, or has children; 1 end-of-sequence token; 2 cut at the length limit; 3 not searched."""
    fork_mass_N: NDArray[np.float32]
    """float32 [nodes]: cumulative probability of the most probable tokens after this node where it made the search
    fork, else NaN."""

    def __post_init__(self) -> None:
        shape = RoutingShape(
            num_layers=self.num_layers, num_experts=self.num_experts, num_experts_per_tok=self.num_experts_per_tok
        )
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size ({self.vocab_size}) must be at least 1; pass the model's vocab_size")
        num_nodes = len(self.parent_N)
        if not 1 <= self.prompt_length <= num_nodes:
            raise ValueError(
                f"prompt_length ({self.prompt_length}) must be at least 1 and at most the number of nodes "
                f"({num_nodes}); pass a prompt of a token or more"
            )
        for name, dtypes in _DTYPES.items():
            _check_array(name, getattr(self, f"{name}_N"), dtypes, (num_nodes,))
        routing = (num_nodes, self.num_layers, self.num_experts_per_tok)
        _check_array("expert_ids", self.expert_ids_NLK, ("uint8", "uint16"), routing)
        self._check_parents()
        check_id_range(
            self.token_ids_N, self.vocab_size, name="token_ids", limit_name="vocab_size", advice="pass the model's own"
        )
        shape.check(self.expert_ids_NLK)
        self._check_routing()
        self._check_ends()
        self._check_probabilities()

    @property
    def num_nodes(self) -> int:
        """Tokens of the prompt and of all that was generated."""
        return len(self.parent_N)

    @cached_property
    def depth_N(self) -> NDArray[np.int64]:
        """Number of tokens before each node, int64 [nodes]."""
        depths: list[int] = []
        for parent in self.parent_N.tolist():
            depths.append(depths[parent] + 1 if depths else 0)
        return np.array(depths, dtype=np.int64)

    @cached_property
    def num_children_N(self) -> NDArray[np.int64]:
        """Number of children of each node, int64 [nodes]."""
        return np.bincount(self.parent_N[1:], minlength=self.num_nodes).astype(np.int64)

    def children(self, node: int) -> NDArray[np.int64]:
        """The nodes whose parent this is, in order.

        Raises:
            ValueError: no such node.
        """
        self._check_nodes(node)
        first = self._first_child_N[node]
        return self._by_parent_N[first : first + self.num_children_N[node]]

    def path(self, node: int) -> NDArray[np.int64]:
        """The nodes from node 0 to this one, int64 [depth + 1].

        Raises:
            ValueError: no such node.
        """
        self._check_nodes(node)
        nodes = np.empty(self.depth_N[node] + 1, dtype=np.int64)
        for place in range(len(nodes) - 1, -1, -1):
            nodes[place] = node
            node = self.parent_N[node]
        return nodes

    def completions(self) -> NDArray[np.int64]:
        """The nodes that end a sequence with the end-of-sequence token, in order."""
        return np.flatnonzero(self.end_N == END_OF_SEQUENCE)

    def leaves(self) -> NDArray[np.int64]:
        """The nodes without children, in order."""
        return np.flatnonzero(self.num_children_N == 0)

    def forks(self) -> NDArray[np.int64]:
        """The nodes with two or more children, in order."""
        return np.flatnonzero(self.num_children_N > 1)

    def last_common_ancestor(self, first_P: ArrayLike, second_P: ArrayLike) -> NDArray[np.int64]:
        """The last node that is on the paths of both, for pairs of nodes of any shape; of a node and itself, itself.

        Raises:
            ValueError: no such node.
        """
        first_P, second_P = (np.array(nodes) for nodes in np.broadcast_arrays(first_P, second_P))
        self._check_nodes(first_P, second_P)
        # Ancestors have lower numbers, so that of two different nodes the higher is not above the lower.
        while (is_first_P := first_P > second_P).any() or (first_P != second_P).any():
            first_P, second_P = (
                np.where(is_first_P, self.parent_N[first_P], first_P),
                np.where(first_P < second_P, self.parent_N[second_P], second_P),
            )
        return first_P

    @cached_property
    def _by_parent_N(self) -> NDArray[np.int64]:
        return np.argsort(self.parent_N, kind="stable")

    @cached_property
    def _first_child_N(self) -> NDArray[np.int64]:
        # Node 0, whose parent is none, comes first of all.
        return 1 + np.cumsum(self.num_children_N) - self.num_children_N

    def _check_nodes(self, *nodes: Any) -> None:
        for some in nodes:
            check_id_range(np.asarray(some), self.num_nodes, name="node", limit_name="num_nodes", advice="pass another")

    def _check_parents(self) -> None:
        node_N = np.arange(self.num_nodes)
        lowest_N = np.full(self.num_nodes, self.prompt_length - 1)
        lowest_N[: self.prompt_length] = node_N[: self.prompt_length] - 1
        _check_each(
            "parent",
            self.parent_N,
            (self.parent_N >= lowest_N) & (self.parent_N < node_N),
            "be the node before it in the prompt, and after it from the prompt's last to the one before the node",
            "number nodes after their parents, the prompt first",
        )

    def _check_routing(self) -> None:
        sorted_NLK = np.sort(self.expert_ids_NLK, axis=2)
        has_twice_N = (sorted_NLK[:, :, 1:] == sorted_NLK[:, :, :-1]).any(axis=(1, 2))
        _check_each(
            "expert_ids",
            self.expert_ids_NLK,
            ~(has_twice_N & self.has_routing_N),
            "differ within a layer",
            "pass each of the experts once",
        )
        _check_each(
            "has_routing",
            self.has_routing_N,
            self.has_routing_N | (self.num_children_N == 0),
            "be True of a node with children",
            "record the routing of every token that was fed",
        )

    def _check_ends(self) -> None:
        _check_each("end", self.end_N, self.end_N <= NOT_SEARCHED, "be 0, 1, 2 or 3", "see the field's description")
        may_end_N = (self.num_children_N == 0) & (np.arange(self.num_nodes) >= self.prompt_length)
        _check_each(
            "end",
            self.end_N,
            (self.end_N == GOES_ON) | may_end_N,
            "be 0 in the prompt and where there are children",
            "end sequences at generated leaves only",
        )

    def _check_probabilities(self) -> None:
        log_N, is_prompt_N = self.log_probability_N, np.arange(self.num_nodes) < self.prompt_length
        _check_each(
            "log_probability",
            log_N,
            np.isfinite(log_N) & np.where(is_prompt_N, log_N == 0, log_N <= 0),
            "be finite and at most 0, in the prompt 0",
            "pass natural logarithms of probabilities",
        )
        mass_N = self.fork_mass_N
        _check_each(
            "fork_mass",
            mass_N,
            np.isnan(mass_N) | ((mass_N >= 0) & (mass_N <= 1 + _ROUNDING)),
            "be NaN or between 0 and 1",
            "pass a sum of probabilities",
        )


_DTYPES = {
    "parent": ("int64",),
    "token_ids": ("int32",),
    "log_probability": ("float32",),
    "has_routing": ("bool",),
    "end": ("uint8",),
    "fork_mass": ("float32",),
}


def _check_array(name: str, array: NDArray[Any], dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if array.dtype.name not in dtypes or array.shape != shape:
        raise ValueError(
            f"{name} ({array.dtype} {list(array.shape)}) must be {' or '.join(dtypes)} {list(shape)}; "
            "pass one entry for each node"
        )


def _check_each(name: str, values_N: NDArray[Any], is_right_N: NDArray[np.bool_], rule: str, advice: str) -> None:
    if not is_right_N.all():
        node = int(np.argmin(is_right_N))
        raise ValueError(f"{name} ({values_N[node].tolist()} of node {node}) must {rule}; {advice}")
