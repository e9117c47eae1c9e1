"""The block mask against the dense mask, written out position by position, and against torch's own construction."""

# Shapes: B batch, S sequence, Q query blocks (as many key blocks).

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from pathmoe.attention_mask import BLOCK_SIZE, document_block_mask, document_ids, document_lengths


def positions(*rows: list[int]) -> Tensor:
    """Positions of rows of documents, given by their lengths."""
    return torch.tensor([[position for length in row for position in range(length)] for row in rows])


def dense_mask(*rows: list[int]) -> Tensor:
    """[B, S, S]: who sees whom, from the lengths of documents alone."""
    return torch.stack([torch.block_diag(*[torch.ones(n, n).tril() for n in row]).bool() for row in rows])


@st.composite
def documents(draw: st.DrawFn, max_length: int = 600) -> list[int]:
    """Lengths of documents that fill a row; many short ones, some longer than a block, some ending at a block's end."""
    total = draw(st.integers(1, max_length))
    lengths: list[int] = []
    while (rest := total - sum(lengths)) > 0:
        kind = draw(st.sampled_from([1, 7, BLOCK_SIZE, BLOCK_SIZE + 1, rest, None]))
        lengths.append(min(rest, draw(st.integers(1, rest)) if kind is None else kind))
    return lengths


EDGES = {
    "one document": [512],
    "one document, not a multiple of the block": [300],
    "one token": [1],
    "documents of one token": [1] * 300,
    "documents of a block": [128, 128, 128],
    "a boundary just before and just after a block's end": [127, 2, 127, 130],
    "a document over many blocks between short ones": [5, 400, 3],
}
edges = pytest.mark.parametrize("row", EDGES.values(), ids=EDGES)


def test_documents_start_where_positions_do_not_follow_on() -> None:
    position_ids_BS = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 1], [3, 4, 5, 6, 0, 1, 2, 3]])
    assert document_ids(position_ids_BS).tolist() == [[0, 0, 0, 1, 1, 2, 3, 3], [0, 0, 0, 0, 1, 1, 1, 1]]
    assert document_ids(torch.tensor([[0]])).tolist() == [[0]]


def test_lengths_are_of_the_rows_joined_end_to_end() -> None:
    position_ids_BS = torch.tensor([[0, 1, 2, 0, 1, 0], [3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 0]])
    lengths = document_lengths(position_ids_BS)
    # A row that goes on where the one before it ended is another document all the same.
    assert lengths["cu_seq_lens_q"].tolist() == lengths["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 12, 17, 18]
    assert lengths["cu_seq_lens_q"].dtype == torch.int32
    assert lengths["max_length_q"] == lengths["max_length_k"] == 6


def block_kinds(mask_BSS: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs of blocks have any position to attend to, and which have all: [B, Q, Q] each."""
    num_rows, length, _ = mask_BSS.shape
    num_blocks = -(-length // BLOCK_SIZE)
    padding = num_blocks * BLOCK_SIZE - length
    tiles = F.pad(mask_BSS, (0, padding, 0, padding)).view(num_rows, num_blocks, BLOCK_SIZE, num_blocks, BLOCK_SIZE)
    return tiles.any(dim=4).any(dim=2), tiles.all(dim=4).all(dim=2)


def listed_blocks(counts: Tensor, indices: Tensor) -> Tensor:
    """The dense [B, Q, Q] form of BlockMask's lists."""
    listed = torch.zeros_like(indices[:, 0], dtype=torch.bool)
    for b, q in torch.cartesian_prod(torch.arange(indices.shape[0]), torch.arange(indices.shape[2])).tolist():
        kept = indices[b, 0, q, : counts[b, 0, q]]
        assert kept.tolist() == sorted(set(kept.tolist()))
        listed[b, q, kept.long()] = True
    return listed


def assert_blocks_follow_from_the_dense_mask(*rows: list[int]) -> None:
    block_mask = document_block_mask(positions(*rows))
    some_BQQ, all_BQQ = block_kinds(dense_mask(*rows))
    partial_BQQ = listed_blocks(block_mask.kv_num_blocks, block_mask.kv_indices)
    assert block_mask.full_kv_num_blocks is not None
    assert block_mask.full_kv_indices is not None
    full_BQQ = listed_blocks(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    # A full block skips the mask, and one with padding is never full; nothing is missed, nothing computed in vain.
    assert torch.equal(full_BQQ, all_BQQ)
    assert torch.equal(partial_BQQ, some_BQQ & ~all_BQQ)
    assert block_mask.shape == (len(rows), 1, sum(rows[0]), sum(rows[0]))


@edges
def test_blocks_follow_from_the_dense_mask(row: list[int]) -> None:
    assert_blocks_follow_from_the_dense_mask(row)


@given(documents())
def test_blocks_of_random_documents(row: list[int]) -> None:
    assert_blocks_follow_from_the_dense_mask(row)


@given(documents(max_length=400), st.randoms(use_true_random=False))
def test_rows_of_a_batch_have_documents_of_their_own(row: list[int], random: Any) -> None:
    shuffled = random.sample(row, len(row))
    assert_blocks_follow_from_the_dense_mask(row, shuffled, [sum(row)])


@pytest.mark.parametrize("row", [[512], [100, 28, 200, 56], [1] * 256, [128, 128], [300], [10, 290]])
def test_equals_what_torch_makes_of_the_same_mask(row: list[int]) -> None:
    ours = document_block_mask(positions(row))
    theirs = create_block_mask(ours.mask_mod, 1, None, sum(row), sum(row), device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
    # What the backward of flex attention walks along: the same blocks, seen from the keys.
    assert ours.q_num_blocks is not None
    assert theirs.q_num_blocks is not None
    assert torch.equal(ours.q_num_blocks, theirs.q_num_blocks)
    assert ours.full_q_num_blocks is not None
    assert theirs.full_q_num_blocks is not None
    assert torch.equal(ours.full_q_num_blocks, theirs.full_q_num_blocks)


def attention_inputs(num_rows: int, length: int) -> list[Tensor]:
    return [torch.randn(num_rows, 2, length, 8) for _ in range(3)]


# Outside torch.compile, flex attention warns that it goes through every pair of positions, which is wanted here.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@given(documents(max_length=200))
def test_attention_equals_that_of_the_dense_mask(row: list[int]) -> None:
    rows = [row, row[::-1]]
    query, key, value = attention_inputs(2, sum(row))
    output = flex_attention(query, key, value, block_mask=document_block_mask(positions(*rows)))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=dense_mask(*rows)[:, None])
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # calls a C++ compiler; only compiled code skips blocks
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_attention_equals_that_of_the_dense_mask() -> None:
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=True)
    for row in ([5, 400, 3], [128, 128, 128], [127, 2, 127, 130], [300]):
        rows = [row, row[::-1]]
        query, key, value = attention_inputs(2, sum(row))
        with torch.no_grad():
            output = compiled(query, key, value, block_mask=document_block_mask(positions(*rows)))
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=dense_mask(*rows)[:, None])
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
