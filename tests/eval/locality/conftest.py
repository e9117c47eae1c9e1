"""Trees of random shape, tokens and routing."""

# Shapes: N nodes, L MoE layers, E experts, K experts per token.

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pathmoe_eval.generation.tree import GenerationTree

RandomTree = Callable[..., GenerationTree]
"""From a seed, and fields of the shape, to a tree of random completions, of which some are cut."""


def _random(
    plant_tree: Callable[..., GenerationTree],
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
    return plant_tree(completions, experts, num_experts, is_cut=is_cut)


@pytest.fixture(scope="session")
def random_tree(plant_tree) -> RandomTree:
    """Grow a random tree."""
    return functools.partial(_random, plant_tree)
