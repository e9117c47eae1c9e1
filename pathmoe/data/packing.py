"""Documents -> token stream -> fixed-length blocks -> batches: pure functions on arrays.

Blocks overlap by one token, so that every token of the stream but the first is a target once. Where documents begin is
kept beside the tokens; positions and masked targets are rebuilt from it when a batch is made.
"""

# Shapes: N tokens of a stream, B blocks, S sequence, T = S + 1 tokens of a block, P = ceil(T / 8) bytes.

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

IGNORE_INDEX = -100
"""Label of a position that is no target (the value that torch's cross-entropy ignores)."""


class Stream(NamedTuple):
    """A piece of the token stream of a split."""

    tokens_N: npt.NDArray[np.integer]
    starts_N: npt.NDArray[np.bool_]
    """True where a document begins."""


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Smallest unsigned type that holds every token id of the vocabulary."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def to_stream(documents: Sequence[Sequence[int]], bos_id: int | None, eos_id: int, vocab_size: int) -> Stream:
    """Concatenate tokenised documents, each as bos + tokens + eos (bos omitted where the tokenizer has none)."""
    prefix = [] if bos_id is None else [bos_id]
    lengths = np.array([len(prefix) + len(document) + 1 for document in documents], dtype=np.int64)
    pieces = chain.from_iterable((prefix, document, [eos_id]) for document in documents)
    tokens_N: npt.NDArray[np.integer] = np.fromiter(
        chain.from_iterable(pieces), dtype=token_dtype(vocab_size), count=int(lengths.sum())
    )
    starts_N = np.zeros(len(tokens_N), dtype=bool)
    starts_N[np.cumsum(lengths) - lengths] = True
    return Stream(tokens_N, starts_N)


def join(first: Stream, second: Stream) -> Stream:
    """Two consecutive pieces of a stream as one."""
    return Stream(np.concatenate([first.tokens_N, second.tokens_N]), np.concatenate([first.starts_N, second.starts_N]))


def empty_stream(vocab_size: int) -> Stream:
    """A stream of no tokens."""
    return Stream(np.empty(0, token_dtype(vocab_size)), np.empty(0, bool))


def cut_blocks(
    stream: Stream, sequence_length: int, max_blocks: int | None = None
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.bool_], Stream]:
    """Cut as many blocks as the stream holds, at most max_blocks.

    Returns tokens_BT, starts_BT, and the rest of the stream, which begins with the last token of the last block.
    """
    num_blocks = max(0, len(stream.tokens_N) - 1) // sequence_length
    if max_blocks is not None:
        num_blocks = min(num_blocks, max_blocks)
    rows_BT = np.arange(num_blocks)[:, None] * sequence_length + np.arange(sequence_length + 1)
    used = num_blocks * sequence_length
    return stream.tokens_N[rows_BT], stream.starts_N[rows_BT], Stream(stream.tokens_N[used:], stream.starts_N[used:])


def is_target(starts_BT: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[B, S]: whether the next token belongs to the same document, so that predicting it is a fair question."""
    return ~starts_BT[:, 1:]


def block_to_batch(
    tokens_BT: npt.NDArray[np.integer], packed_starts_BP: npt.NDArray[np.uint8]
) -> dict[str, torch.Tensor]:
    """Stored rows to model inputs.

    tokens_BT: token ids. packed_starts_BP: `np.packbits` of the document starts.
    Returns int64 [B, S] tensors: `input_ids`; `shift_labels`, the next token, or -100 where that begins another
    document; `position_ids`, which restart at each document start and at each block start.
    """
    num_tokens = tokens_BT.shape[1]
    starts_BT = np.unpackbits(packed_starts_BP, axis=1, count=num_tokens).view(bool)
    tokens_BT = tokens_BT.astype(np.int64)
    labels_BS = np.where(is_target(starts_BT), tokens_BT[:, 1:], IGNORE_INDEX)
    place_S = np.arange(num_tokens - 1)
    # The first column has place 0, so a block start counts as a document start.
    last_start_BS = np.maximum.accumulate(np.where(starts_BT[:, :-1], place_S, 0), axis=1)
    return {
        "input_ids": torch.from_numpy(tokens_BT[:, :-1].copy()),
        "shift_labels": torch.from_numpy(labels_BS),
        "position_ids": torch.from_numpy(place_S - last_start_BS),
    }
