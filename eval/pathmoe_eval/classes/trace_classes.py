"""The class of each token of a trace, from its text as the tokenizer decodes it."""

# Shapes: N tokens.

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pathmoe_eval.classes.token_classes import SPECIAL, ClassNames, Tagger, tagged
from pathmoe_eval.classes.token_spans import spans_of_ids
from pathmoe_eval.traces.routing_chunk import RoutingChunk


def trace_classes(
    chunks: Iterable[RoutingChunk], tokenizer: PreTrainedTokenizerBase, tagger: Tagger, names: ClassNames
) -> Iterator[NDArray[np.int32]]:
    """Class of each token, [tokens of a sequence] for one sequence after the other, as `names` numbers them.

    Taggers are given whole sequences, since what a token is depends on what stands around it. Special tokens are of
    the class `special`, and no part of the text. Memory is bounded by the longest sequence.

    Raises:
        ValueError: what the tagger returns is not one string a token, or there are too many classes.
    """
    special_ids = np.array(sorted(tokenizer.all_special_ids), dtype=np.int64)
    for ids_N in _sequences(chunks):
        yield _classes(ids_N, special_ids, tokenizer, tagger, names)


class InPieces:
    """Arrays that come one after the other, given out again in pieces of other lengths."""

    def __init__(self, arrays: Iterable[NDArray[np.int32]]) -> None:
        """Read `arrays` as far as they are needed."""
        self._arrays = iter(arrays)
        self._waiting: list[NDArray[np.int32]] = []
        self._num_waiting = 0

    def take(self, length: int) -> NDArray[np.int32]:
        """The next `length` entries, as many as are left at the end."""
        while self._num_waiting < length and (array := next(self._arrays, None)) is not None:
            self._waiting.append(array)
            self._num_waiting += len(array)
        joined = np.concatenate([np.empty(0, dtype=np.int32), *self._waiting])
        self._waiting = [joined[length:]]
        self._num_waiting = len(joined[length:])
        return joined[:length]


def _sequences(chunks: Iterable[RoutingChunk]) -> Iterator[NDArray[np.int64]]:
    """The token ids of each sequence, whole."""
    pieces: list[NDArray[np.integer]] = []
    for chunk in chunks:
        for piece, (start, stop) in enumerate(zip(chunk.starts_S1[:-1], chunk.starts_S1[1:], strict=True)):
            if pieces and (piece > 0 or chunk.first_position == 0):
                yield np.concatenate(pieces).astype(np.int64)
                pieces = []
            pieces.append(chunk.token_ids_N[start:stop])
    if pieces:
        yield np.concatenate(pieces).astype(np.int64)


def _classes(
    ids_N: NDArray[np.int64],
    special_ids: NDArray[np.int64],
    tokenizer: PreTrainedTokenizerBase,
    tagger: Tagger,
    names: ClassNames,
) -> NDArray[np.int32]:
    is_special_N = np.isin(ids_N, special_ids)
    text, spans = spans_of_ids(tokenizer, ids_N[~is_special_N].tolist())
    classes = tagged(tagger, text, spans)
    class_ids_N = np.empty(len(ids_N), dtype=np.int32)
    class_ids_N[~is_special_N] = names.ids(classes)
    class_ids_N[is_special_N] = names.ids([SPECIAL] * int(is_special_N.sum()))
    return class_ids_N
