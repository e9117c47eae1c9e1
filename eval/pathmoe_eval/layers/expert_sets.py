"""Top-k expert sets of tokens as bit masks."""

# Shapes: N tokens, L MoE layers, K experts per token, W words that hold one set.

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.routing_shape import RoutingShape, tokens_last

_WORD_BITS = 64
_BLOCK_TOKENS = 1 << 14
_MAX_EXPERTS_PER_TOK = 255


def set_blocks(
    shape: RoutingShape, expert_ids_NLK: NDArray[np.integer]
) -> Iterator[tuple[NDArray[np.integer], NDArray[np.unsignedinteger]]]:
    """Expert ids [experts per token, layers, tokens] and their `set_masks`, as many tokens at a time as stay in cache.

    Raises:
        ValueError: the ids do not have this shape, one is out of range, a token has one twice in a layer, or more than
            255 in a layer.
    """
    expert_ids_NLK = shape.check(expert_ids_NLK)
    for start in range(0, len(expert_ids_NLK), _BLOCK_TOKENS):
        ids_KLN = tokens_last(expert_ids_NLK[start : start + _BLOCK_TOKENS].transpose(2, 1, 0))
        yield ids_KLN, set_masks(ids_KLN, shape.num_experts)


def set_masks(expert_ids_KLN: NDArray[np.integer], num_experts: int) -> NDArray[np.unsignedinteger]:
    """Masks of which bit e says whether expert e is among the top k of a token in a layer.

    Unsigned integers [words, layers, tokens]. One word of 16, 32 or 64 bits holds all experts if it can; more experts
    take several words of 64.

    Raises:
        ValueError: a token has the same expert twice in a layer, or more than 255 in one, which
            `set_sizes` cannot count.
    """
    if len(expert_ids_KLN) > _MAX_EXPERTS_PER_TOK:
        raise ValueError(
            f"num_experts_per_tok ({len(expert_ids_KLN)}) must be at most {_MAX_EXPERTS_PER_TOK}; "
            "pass the first of each token's experts only"
        )
    num_words = -(-num_experts // _WORD_BITS)
    dtype: type[np.unsignedinteger] = np.uint16 if num_experts <= 16 else np.uint32 if num_experts <= 32 else np.uint64
    masks_WLN = np.zeros((num_words, *expert_ids_KLN.shape[1:]), dtype=dtype)
    for ids_LN in expert_ids_KLN:
        bits_LN = ids_LN.astype(dtype)
        for word, masks_LN in enumerate(masks_WLN):
            # An id below the word's first wraps around; numpy shifts by more bits than there are to 0.
            masks_LN |= dtype(1) << (bits_LN - dtype(word * _WORD_BITS))
    if (wrong_LN := set_sizes(masks_WLN) != len(expert_ids_KLN)).any():
        layer, token = np.argwhere(wrong_LN)[0]
        ids = expert_ids_KLN[:, layer, token].tolist()
        raise ValueError(
            f"expert_ids ({ids} in layer {layer}) must differ within a token and layer; pass each of the top k once"
        )
    return masks_WLN


def set_sizes(masks_WLN: NDArray[np.unsignedinteger]) -> NDArray[np.uint8]:
    """Number of experts in each set: uint8 [layers, tokens], or whatever follows the words."""
    sizes_LN: NDArray[np.uint8] = np.bitwise_count(masks_WLN[0])
    for masks_LN in masks_WLN[1:]:
        sizes_LN += np.bitwise_count(masks_LN)
    return sizes_LN


def pad_tokens(masks_WLN: NDArray[np.unsignedinteger], multiple: int) -> NDArray[np.unsignedinteger]:
    """The masks with tokens without experts behind them, so that there are a multiple of `multiple`."""
    return np.pad(masks_WLN, ((0, 0), (0, 0), (0, -masks_WLN.shape[-1] % multiple)))
