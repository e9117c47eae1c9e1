"""Which characters of a document each of its tokens stands for, and the class that most of them have."""

# Shapes: N tokens, C classes, M characters of a document.

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pathmoe.data.tokenizer import encode

_BLANK = re.compile(r"\s")
_TOKENS_AT_ONCE = 1 << 16
_MOST_TOKENS_OF_A_CHARACTER = 16
_REPLACEMENT = "\ufffd"
"""What bytes decode to that are no character."""


def encode_with_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], NDArray[np.int64]]:
    """Token ids of a text, as `pathmoe.data.tokenizer.encode` gives them, and the characters that each stands for.

    The spans [start, end) tile the text: they begin at 0, end at its length, and leave nothing out. What the tokenizer
    drops goes to the token before up to the first blank (a mark that it composes with its letter), from there on to the
    next; before the first token and after the last there is but one. A character that is split over several
    tokens, as byte-level BPE does it, is in the span of each, so that neighbours share it. A token that stands for
    nothing has an empty span.

    Returns:
        The ids, and int64 [tokens, 2].

    Raises:
        ValueError: a tokenizer without offsets whose tokens do not decode to the text.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    else:
        ids = encode(tokenizer, [text])[0]
        offsets = _offsets_by_decoding(tokenizer, ids, text)
    return ids, _tiled(np.array(offsets, dtype=np.int64).reshape(-1, 2), text)


def spans_of_ids(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text that token ids stand for, and the characters [start, end) of it that each does.

    The ids need not be those that the tokenizer would give the text: a model may have chosen them, or a document was
    cut. Bytes that are no character are one replacement character a token then.
    """
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    encoded_ids, spans_N2 = encode_with_spans(tokenizer, text)
    if encoded_ids == ids:
        return text, [(start, end) for start, end in spans_N2.tolist()]
    spans: list[tuple[int, int]] = []
    text = ""
    while len(spans) < len(ids):
        piece, num_tokens = _next_piece(tokenizer, ids, len(spans))
        spans += [(len(text), len(text) + len(piece))] * num_tokens
        text += piece
    return text, spans


def _next_piece(tokenizer: PreTrainedTokenizerBase, ids: list[int], first: int) -> tuple[str, int]:
    """Text of the fewest tokens from `first` on that are whole characters, and how many they are.

    One token is decoded before them, as some tokenizers drop the blank that a text begins with.
    """

    def decode(start: int, stop: int) -> str:
        return str(tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False))

    before = decode(first - 1, first) if first else ""
    start = first - 1 if before and not before.endswith(_REPLACEMENT) else first
    skipped = len(before) if start < first else 0
    for last in range(first + 1, min(first + _MOST_TOKENS_OF_A_CHARACTER, len(ids)) + 1):
        piece = decode(start, last)[skipped:]
        if not piece.endswith(_REPLACEMENT):
            return piece, last - first
    return decode(start, first + 1)[skipped:], 1


def majority_class(class_of_character_M: NDArray[np.integer], spans_N2: NDArray[np.int64], num_classes: int) -> NDArray:
    """The class that most characters of each token have; of equally many, the lowest class id (our choice).

    Args:
        class_of_character_M: integers [characters], from 0 and below num_classes.
        spans_N2: int64 [tokens, 2] as `encode_with_spans` gives them.
        num_classes: one more than the highest class id.

    Returns:
        int64 [tokens]; -1 for a token with an empty span.
    """
    classes_N = np.full(len(spans_N2), -1, dtype=np.int64)
    for first in range(0, len(spans_N2), _TOKENS_AT_ONCE):
        starts_N, ends_N = spans_N2[first : first + _TOKENS_AT_ONCE].T
        lengths_N = ends_N - starts_N
        token_of_M = np.repeat(np.arange(len(starts_N)), lengths_N)
        place_M = np.arange(len(token_of_M)) - np.repeat(np.cumsum(lengths_N) - lengths_N, lengths_N)
        cell_M = token_of_M * num_classes + class_of_character_M[starts_N[token_of_M] + place_M]
        counts_NC = np.bincount(cell_M, minlength=len(starts_N) * num_classes).reshape(-1, num_classes)
        classes_N[first : first + _TOKENS_AT_ONCE] = np.where(lengths_N > 0, counts_NC.argmax(axis=1), -1)
    return classes_N


def _tiled(offsets_N2: NDArray[np.int64], text: str) -> NDArray[np.int64]:
    """Offsets with the gaps between them closed."""
    if len(offsets_N2) == 0:
        return offsets_N2
    starts_N, ends_N = offsets_N2.T
    ends_N = np.maximum.accumulate(ends_N)
    for token in (np.flatnonzero(starts_N[1:] > ends_N[:-1]) + 1).tolist():
        gap = text[ends_N[token - 1] : starts_N[token]]
        ends_N[token - 1] += len(gap) if not (blank := _BLANK.search(gap)) else blank.start()
    ends_N[-1] = len(text)
    last_end_N = np.concatenate([[0], ends_N[:-1]])
    return np.stack([np.minimum(starts_N, last_end_N), ends_N], axis=1)


def _offsets_by_decoding(tokenizer: PreTrainedTokenizerBase, ids: list[int], text: str) -> list[tuple[int, int]]:
    """Spans found by decoding the fewest next tokens that give the next characters of the text."""
    offsets: list[tuple[int, int]] = []
    cursor = 0
    while len(offsets) < len(ids):
        first = len(offsets)
        for last in range(first + 1, min(first + _MOST_TOKENS_OF_A_CHARACTER, len(ids)) + 1):
            piece = str(tokenizer.decode(ids[first:last], clean_up_tokenization_spaces=False))
            start = _place_of(piece, text, cursor)
            if start is not None:
                break
        else:
            raise ValueError(
                f"tokenizer ({type(tokenizer).__name__}) must decode its tokens to the text at character {cursor}; "
                "use a fast tokenizer, which knows their offsets"
            )
        cursor = start + len(piece)
        offsets += [(start, cursor)] * (last - first)
    return offsets


def _place_of(piece: str, text: str, cursor: int) -> int | None:
    """Where the piece is: at the cursor, or after the blanks that follow it; None where it is at neither."""
    if not piece:
        return None
    if text.startswith(piece, cursor):
        return cursor
    while cursor < len(text) and text[cursor].isspace():
        cursor += 1
    return cursor if text.startswith(piece, cursor) else None
