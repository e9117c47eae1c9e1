"""Documents cut into windows that a model can read, such that each token is counted in exactly one of them.

A window holds the inputs at positions [begin, begin + S) of one document, S at most `max_length`; the next one begins
`stride` positions later. What it has in common with the one before is context: counted are a document's first
`max_length` inputs, and of each later window its last `stride`. So a counted input has at least `max_length - stride`
tokens of its document before it, or all that there are, and neither what follows a token nor any other document changes
what it is given.
"""

# Shapes: N tokens of a document, S inputs of a window.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pathmoe.data.packing import IGNORE_INDEX

_BATCHES_PER_SORT = 64


class Tokens(Protocol):
    """A tokenised document."""

    @property
    def token_ids(self) -> NDArray[np.integer]:
        """Integers [N]."""
        ...


class Window(NamedTuple):
    """Consecutive inputs of one document."""

    document: int
    """Number of the document, counted from 0."""
    begin: int
    """Position of the first input in the document."""
    num_repeated: int
    """Leading inputs that are context here and were counted in an earlier window."""
    input_ids_S: NDArray[np.int64]
    target_ids_S: NDArray[np.int64]
    """The token after each input; `IGNORE_INDEX` after repeated inputs and after the document's last token."""


def score_windows(documents: Iterable[Tokens], max_length: int, stride: int) -> Iterator[Window]:
    """Windows of all documents, in order; a document without tokens has none.

    Each token is a counted input once, and each token but a document's first is a target once. With `stride` equal to
    `max_length` windows do not overlap; a smaller one gives more context, and costs max_length / stride times as much.

    Args:
        documents: tokenised documents.
        max_length: inputs of a window at most.
        stride: inputs between the beginnings of two windows.

    Raises:
        ValueError: a max_length below 1, or a stride that is not in [1, max_length].
    """
    if max_length < 1:
        raise ValueError(f"--max_length ({max_length}) must be at least 1; raise it")
    if not 1 <= stride <= max_length:
        raise ValueError(
            f"--stride ({stride}) must be at least 1 and at most --max_length ({max_length}); change one of them"
        )
    return (
        window
        for number, document in enumerate(documents)
        for window in _windows(number, document.token_ids.astype(np.int64), max_length, stride)
    )


def _windows(document: int, token_ids_N: NDArray[np.int64], max_length: int, stride: int) -> Iterator[Window]:
    next_ids_N = np.append(token_ids_N[1:], IGNORE_INDEX)
    num_counted = 0
    for begin in range(0, len(token_ids_N), stride):
        end = min(begin + max_length, len(token_ids_N))
        target_ids_S = next_ids_N[begin:end].copy()
        target_ids_S[: num_counted - begin] = IGNORE_INDEX
        yield Window(document, begin, num_counted - begin, token_ids_N[begin:end], target_ids_S)
        num_counted = end
        if end == len(token_ids_N):
            return


def group_windows(windows: Iterable[Window], windows_per_forward: int) -> Iterator[list[Window]]:
    """Windows in groups for one forward each, of similar lengths, so that little of a group is padding.

    Alone each, they keep their order; otherwise some thousands at a time are sorted by their length.

    Raises:
        ValueError: windows_per_forward below 1.
    """
    if windows_per_forward < 1:
        raise ValueError(f"--windows_per_forward ({windows_per_forward}) must be at least 1; raise it")
    return _groups(iter(windows), windows_per_forward)


def _groups(windows: Iterator[Window], windows_per_forward: int) -> Iterator[list[Window]]:
    num_sorted = windows_per_forward * (_BATCHES_PER_SORT if windows_per_forward > 1 else 1)
    while some := list(islice(windows, num_sorted)):
        some.sort(key=lambda window: len(window.input_ids_S))
        for first in range(0, len(some), windows_per_forward):
            yield some[first : first + windows_per_forward]
