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
) -> NDArray[np.int32]:
    """Class of each token of all chunks, [tokens], as `names` numbers them.

    Taggers are given whole sequences, since what a token is depends on what stands around it. Special tokens are of
    the class `special`, and no part of the text.

    Raises:
        ValueError: what the tagger returns is not one string a token, or there are too many classes.
    """
    special_ids = np.array(sorted(tokenizer.all_special_ids), dtype=np.int64)
    classes = [_classes(ids_N, special_ids, tokenizer, tagger, names) for ids_N in _sequences(chunks)]
    return np.concatenate([np.empty(0, dtype=np.int32), *classes])


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
