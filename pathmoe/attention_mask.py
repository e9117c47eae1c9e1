"""Attention that stays inside documents, where the implementation allows it without a sequence-by-sequence mask."""

# Shapes: B batch, S sequence, D hidden, Q query blocks (as many key blocks).

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.utils.generic import is_flash_attention_requested

BLOCK_SIZE = 128
"""Tokens along each side of a flex attention block: torch's default."""


def attention_bounds(
    config: PreTrainedConfig,
    x_BSD: Tensor,
    attention_mask: Tensor | None,
    cache: Cache | None,
    position_ids_BS: Tensor,
) -> dict[str, Any]:
    """Arguments that make the attention implementation causal, and bounded by documents.

    Documents are looked for where neither a padding mask nor a cache is given. The "eager" and "sdpa" implementations
    have no other way than a mask of S x S then; flex attention takes a mask of blocks, flash attention lengths.

    Args:
        config: names the implementation.
        x_BSD: [B, S, D] input of the layers.
        attention_mask: [B, past + S], 0 for padding.
        cache: keys and values of earlier tokens.
        position_ids_BS: [B or 1, S] positions, restarting at each document.
    """
    if attention_mask is None and cache is None:
        every_position_BS = position_ids_BS.expand(x_BSD.shape[0], -1)
        if config._attn_implementation == "flex_attention":
            return {"attention_mask": document_block_mask(every_position_BS)}
        if is_flash_attention_requested(config):
            # transformers itself looks for documents only where the batch is one row.
            return {"attention_mask": None, **document_lengths(every_position_BS)}
    mask = create_causal_mask(
        config=config,
        inputs_embeds=x_BSD,
        attention_mask=attention_mask,
        past_key_values=cache,
        position_ids=position_ids_BS,
    )
    return {"attention_mask": mask}


def document_ids(position_ids_BS: Tensor) -> Tensor:
    """Number of the document that each token belongs to, counted from 0 in each row: [B, S] int64.

    A document starts wherever the position does not follow on from the one before it.
    """
    return _starts(position_ids_BS).cumsum(dim=1) - 1


def document_lengths(position_ids_BS: Tensor) -> dict[str, Any]:
    """Documents as transformers' flash attention takes them: boundaries in the rows joined end to end, and the longest.

    Waits for the device, once a forward: how many documents there are is a shape.

    Args:
        position_ids_BS: [B, S] integer positions, restarting at each document.
    """
    starts = _starts(position_ids_BS).flatten().nonzero().flatten()
    boundaries = torch.nn.functional.pad(starts, (0, 1), value=position_ids_BS.numel()).to(torch.int32)
    longest = int(boundaries.diff().max())
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _starts(position_ids_BS: Tensor) -> Tensor:
    starts_BS = torch.ones_like(position_ids_BS, dtype=torch.bool)
    starts_BS[:, 1:] = position_ids_BS.diff(dim=1) != 1
    return starts_BS


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
