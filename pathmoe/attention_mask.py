"""Attention that stays inside documents, without a sequence-by-sequence mask."""

# Shapes: B batch, S sequence, Q query blocks (as many key blocks).

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK_SIZE = 128
"""Tokens along each side of a flex attention block: torch's default."""


def document_ids(position_ids_BS: Tensor) -> Tensor:
    """Number of the document that each token belongs to, counted from 0 in each row: [B, S] int64.

    A document starts wherever the position does not follow on from the one before it.
    """
    starts_BS = torch.zeros_like(position_ids_BS)
    starts_BS[:, 1:] = (position_ids_BS.diff(dim=1) != 1).to(starts_BS.dtype)
    return starts_BS.cumsum(dim=1)


def document_block_mask(position_ids_BS: Tensor) -> BlockMask:
    """Causal flex attention mask bounded by documents, in O(S / 128)^2 memory.

    Document ids never decrease along a row, so what a block of queries and one of keys have in common follows from the
    ids at their ends. `create_block_mask` would evaluate the mask at every pair of positions first.

    Args:
        position_ids_BS: [B, S] integer positions, restarting at each document.
    """
    document_BS = document_ids(position_ids_BS)
    num_rows, length = document_BS.shape
    num_blocks = -(-length // BLOCK_SIZE)
    padding = num_blocks * BLOCK_SIZE - length
    blocks_BQs = torch.nn.functional.pad(document_BS, (0, padding), mode="replicate").view(num_rows, num_blocks, -1)
    first_BQ, last_BQ = blocks_BQs[..., 0], blocks_BQs[..., -1]

    index_Q = torch.arange(num_blocks, device=document_BS.device)
    before_QQ = index_Q[:, None] > index_Q
    shares_document_BQQ = last_BQ[:, None, :] >= first_BQ[:, :, None]
    one_document_BQQ = (first_BQ[:, None, :] == last_BQ[:, None, :]) & (last_BQ[:, None, :] == last_BQ[:, :, None])
    full_BQQ = before_QQ & one_document_BQQ
    if padding:
        # Kernels take every query of a full block for a real one.
        full_BQQ[:, -1] = False
    partial_BQQ = (before_QQ & shares_document_BQQ & ~full_BQQ) | (index_Q[:, None] == index_Q)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document_BS[batch, query] == document_BS[batch, key])

    return BlockMask.from_kv_blocks(
        *_listed(partial_BQQ),
        *_listed(full_BQQ),
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=mask_mod,
        seq_lengths=(length, length),
    )


def _listed(blocks_BQQ: Tensor) -> tuple[Tensor, Tensor]:
    """Per query block: how many key blocks, and their indices, those that count first (BlockMask's form)."""
    counts_BQ = blocks_BQQ.sum(dim=-1).to(torch.int32)
    indices_BQQ = blocks_BQQ.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts_BQ[:, None], indices_BQQ[:, None].contiguous()
