# Shapes: B blocks, T tokens of a block.

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.packing import (
    Stream,
    block_to_batch,
    cut_blocks,
    empty_stream,
    is_target,
    join,
    to_stream,
    token_dtype,
)

BOS, EOS, VOCAB = 1, 2, 50
DOCUMENTS = st.lists(st.lists(st.integers(3, VOCAB - 1), max_size=12), min_size=1, max_size=8)


def brute_force(documents: list[list[int]], bos: int | None, eos: int, length: int) -> list[dict[str, list[int]]]:
    """Blocks by loops over (token, document, place in the document)."""
    stream = []
    for number, document in enumerate(documents):
        tokens = ([] if bos is None else [bos]) + document + [eos]
        stream += [(token, number, place) for place, token in enumerate(tokens)]
    blocks = []
    for first in range(0, len(stream) - length, length):
        window = stream[first : first + length + 1]
        block: dict[str, list[int]] = {"input_ids": [], "shift_labels": [], "position_ids": []}
        for at in range(length):
            token, number, place = window[at]
            next_token, next_number, _ = window[at + 1]
            block["input_ids"].append(token)
            block["shift_labels"].append(next_token if next_number == number else -100)
            block["position_ids"].append(min(place, at))
        blocks.append(block)
    return blocks


@given(documents=DOCUMENTS, bos=st.sampled_from([None, BOS, EOS]), length=st.integers(1, 10))
def test_blocks_equal_brute_force(documents: list[list[int]], bos: int | None, length: int) -> None:
    stream = to_stream(documents, bos, EOS, VOCAB)
    tokens_BT, starts_BT, rest = cut_blocks(stream, length)
    expected = brute_force(documents, bos, EOS, length)
    assert len(tokens_BT) == len(expected)
    batch = block_to_batch(tokens_BT, np.packbits(starts_BT, axis=1))
    for key, tensor in batch.items():
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == [block[key] for block in expected]
    assert is_target(starts_BT).sum() == sum(label != -100 for block in expected for label in block["shift_labels"])
    assert len(stream.tokens_N) == len(expected) * length + len(rest.tokens_N)


@given(documents=DOCUMENTS, length=st.integers(1, 10), cuts=st.lists(st.integers(0, 8), max_size=3), data=st.data())
def test_packing_in_pieces_equals_packing_at_once(
    documents: list[list[int]], length: int, cuts: list[int], data: st.DataObject
) -> None:
    whole_BT, whole_starts_BT, _ = cut_blocks(to_stream(documents, BOS, EOS, VOCAB), length)
    edges = [0, *sorted(cuts), len(documents)]
    rest, tokens, starts = empty_stream(VOCAB), [], []
    for first, last in pairwise(edges):
        rest = join(rest, to_stream(documents[first:last], BOS, EOS, VOCAB))
        limit = data.draw(st.none() | st.integers(0, 3))
        tokens_BT, starts_BT, rest = cut_blocks(rest, length, limit)
        tokens.append(tokens_BT)
        starts.append(starts_BT)
    tokens_BT, starts_BT, rest = cut_blocks(rest, length)
    assert np.array_equal(np.concatenate([*tokens, tokens_BT]), whole_BT)
    assert np.array_equal(np.concatenate([*starts, starts_BT]), whole_starts_BT)


@given(documents=DOCUMENTS, length=st.integers(1, 10))
def test_every_token_but_the_first_is_a_target_once(documents: list[list[int]], length: int) -> None:
    stream = to_stream(documents, None, EOS, VOCAB)
    tokens_BT, starts_BT, rest = cut_blocks(stream, length)
    next_tokens = tokens_BT[:, 1:].reshape(-1)
    assert np.array_equal(next_tokens, stream.tokens_N[1 : 1 + len(next_tokens)])
    assert np.array_equal(starts_BT[:, 1:].reshape(-1), stream.starts_N[1 : 1 + len(next_tokens)])
    assert len(rest.tokens_N) <= length


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32), (200_000, np.uint32)])
def test_tokens_are_stored_in_the_smallest_type(vocab_size: int, dtype: type) -> None:
    assert token_dtype(vocab_size) is dtype
    stream = to_stream([[vocab_size - 1]], None, 0, vocab_size)
    assert stream.tokens_N.tolist() == [vocab_size - 1, 0]


def test_no_documents_make_an_empty_stream() -> None:
    stream = join(empty_stream(VOCAB), to_stream([], BOS, EOS, VOCAB))
    assert isinstance(stream, Stream) and len(stream.tokens_N) == len(stream.starts_N) == 0
    tokens_BT, starts_BT, _ = cut_blocks(stream, 4)
    assert tokens_BT.shape == starts_BT.shape == (0, 5)
