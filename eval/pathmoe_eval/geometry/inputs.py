"""Inputs changed before a model reads them: shuffled, reversed, repeated.

"The Myth of Expert Specialization" (arXiv 2604.09780) takes sequences out of distribution by the first two (Figure 3)
and repeats inputs 1 to 12 times (Figures 10 and 26 to 29). Which tokens count there is not known: we count all tokens
of the first two, and of a repeated input its last copy, so that figures are of the same tokens.
"""

# Shapes: S tokens of an input.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COPIES = (1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True, eq=False, kw_only=True)
class VariedInput:
    """What a model reads, and which of it counts."""

    token_ids_S: NDArray[np.int64]
    is_counted_S: NDArray[np.bool_]


def shuffled(token_ids_S: NDArray[np.int64], is_text_S: NDArray[np.bool_], seed: int) -> VariedInput:
    """Tokens of text in a random order; special ones stay where they are."""
    return _reordered(token_ids_S, is_text_S, np.random.default_rng(seed).permutation(int(is_text_S.sum())))


def reversed_order(token_ids_S: NDArray[np.int64], is_text_S: NDArray[np.bool_]) -> VariedInput:
    """Tokens of text from the last to the first; special ones stay where they are."""
    return _reordered(token_ids_S, is_text_S, np.arange(int(is_text_S.sum()))[::-1])


def repeated(token_ids_S: NDArray[np.int64], is_text_S: NDArray[np.bool_], copies: int) -> VariedInput:
    """Tokens of text several times, after the special ones that stand before them; the last copy counts."""
    text_S = token_ids_S[is_text_S]
    first = int(np.argmax(is_text_S)) if is_text_S.any() else len(token_ids_S)
    ids_S = np.concatenate([token_ids_S[:first], *[text_S] * copies])
    return VariedInput(token_ids_S=ids_S, is_counted_S=np.arange(len(ids_S)) >= len(ids_S) - len(text_S))


def _reordered(token_ids_S: NDArray[np.int64], is_text_S: NDArray[np.bool_], order: NDArray[np.int64]) -> VariedInput:
    ids_S = token_ids_S.copy()
    ids_S[is_text_S] = token_ids_S[is_text_S][order]
    return VariedInput(token_ids_S=ids_S, is_counted_S=is_text_S)
