"""Draws of next tokens: a function of a seed and of the place in a tree, whatever else was drawn before."""

# Shapes: V vocabulary.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def draw_tokens(
    log_probability_V: NDArray[np.float64], number: int, temperature: float, seed: int, place: Sequence[int]
) -> list[int]:
    """Different tokens, drawn one after another without replacement; fewer where fewer are possible.

    The first is a plain sample at the temperature. Gumbel noise on log-probabilities, then the highest (Kool, van Hoof
    and Welling, ICML 2019, arXiv 1903.06059).

    Args:
        log_probability_V: float64 [vocabulary], natural logarithm; -inf where a token can't come.
        number: of tokens.
        temperature: divides the logarithms; 0 takes the likeliest, without noise.
        seed: of all draws.
        place: non-negative integers, a key of the place in the tree; other places draw independently.
    """
    keys_V = log_probability_V
    if temperature > 0:
        # The numbers of entries go in front, so that no key is the beginning of another.
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(place), *place)))
        # The highest becomes 0, which no temperature makes infinite.
        keys_V = (keys_V - keys_V.max()) / temperature + generator.gumbel(size=len(keys_V))
    order = [keys_V.argmax()] if number == 1 else np.argsort(-keys_V, kind="stable")[:number]
    return [int(token) for token in order if np.isfinite(log_probability_V[token])]


def top_mass(log_probability_V: NDArray[np.float64], number: int) -> float:
    """Probability of the `number` likeliest tokens together, at temperature 1."""
    if number >= len(log_probability_V):
        return 1.0
    highest = np.partition(log_probability_V, len(log_probability_V) - number)[-number:]
    return min(1.0, float(np.exp(np.sort(highest)).sum()))
