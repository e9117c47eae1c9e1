"""Trees for tests: of random shape, tokens and routing, or as they are planted."""

# Shapes: N nodes, L MoE layers, E experts, K experts per token.

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pathmoe_eval.generation.tree import GenerationTree

PlantTree = Callable[..., GenerationTree]
"""From the tokens after the prompt of each completion, which share what they begin with, and the experts of a node as a
function of (token id, depth, node), [layers][experts per token], to their tree."""

RandomTree = Callable[..., GenerationTree]
"""From a seed, and fields of the shape, to a tree of random completions, of which some are cut."""


def _plant(
    completions: list[list[int]],
    experts: Callable[[int, int, int], list[list[int]]],
    num_experts: int,
    prompt: tuple[int, ...] = (0, 0),
    is_cut: tuple[int, ...] = (),
) -> GenerationTree:
    parents, tokens, nodes = [*range(-1, len(prompt) - 1)], [*prompt], {}
    ends: dict[int, int] = {}
    for index, completion in enumerate(completions):
        last = len(prompt) - 1
        for length, token in enumerate(completion, start=1):
            # The last token of a completion is its own, even where another has the same.
            key = (*completion[:length], *((-1 - index,) if length == len(completion) else ()))
            if key not in nodes:
                nodes[key] = len(parents)
                parents.append(last)
                tokens.append(token)
            last = nodes[key]
        ends[last] = 2 if index in is_cut else 1
    num_nodes = len(parents)
    depths = [0] * num_nodes
    for node in range(1, num_nodes):
        depths[node] = depths[parents[node]] + 1
    ids_NLK = np.array([experts(tokens[node], depths[node], node) for node in range(num_nodes)], dtype=np.uint8)
    return GenerationTree(
        num_layers=ids_NLK.shape[1],
        num_experts=num_experts,
        num_experts_per_tok=ids_NLK.shape[2],
        vocab_size=1000,
        prompt_length=len(prompt),
        parent_N=np.array(parents, dtype=np.int64),
        token_ids_N=np.array(tokens, dtype=np.int32),
        log_probability_N=np.zeros(num_nodes, dtype=np.float32),
        expert_ids_NLK=ids_NLK,
        has_routing_N=np.array([node not in ends for node in range(num_nodes)]),
        end_N=np.array([ends.get(node, 0) for node in range(num_nodes)], dtype=np.uint8),
        fork_mass_N=np.full(num_nodes, np.nan, dtype=np.float32),
    )


def _random(
    seed: int,
    num_completions: int = 6,
    max_length: int = 8,
    vocab_size: int = 3,
    num_layers: int = 2,
    num_experts: int = 6,
    num_experts_per_tok: int = 2,
    skew: float = 1.0,
) -> GenerationTree:
    rng = np.random.default_rng(seed)
    completions = [
        rng.integers(0, vocab_size, rng.integers(1, max_length + 1)).tolist() for _ in range(num_completions)
    ]
    popularity_LE = skew * rng.normal(size=(num_layers, num_experts))

    def experts(*_: Any) -> list[list[int]]:
        scores_LE = popularity_LE + rng.gumbel(size=popularity_LE.shape)
        return np.argsort(-scores_LE, axis=1)[:, :num_experts_per_tok].tolist()

    is_cut = tuple(np.flatnonzero(rng.random(num_completions) < 0.1).tolist())
    return _plant(completions, experts, num_experts, is_cut=is_cut)


@pytest.fixture(scope="session")
def plant_tree() -> PlantTree:
    """Plant a tree."""
    return _plant


@pytest.fixture(scope="session")
def random_tree() -> RandomTree:
    """Grow a random tree."""
    return _random
