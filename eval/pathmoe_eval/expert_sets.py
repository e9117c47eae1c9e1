"""Top-k expert sets of tokens as bit masks, and the shape that chunks of routing must have."""

# Shapes: N tokens, L MoE layers, K experts per token, W words that hold one set.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

_WORD_BITS = 64
_BLOCK_TOKENS = 1 << 14
_MAX_EXPERTS_PER_TOK = 255


@dataclass(frozen=True, kw_only=True)
class RoutingShape:
    """What all chunks of one model's routing have in common."""

    num_layers: int
    """MoE layers; layers that are dense are not counted."""
    num_experts: int
    """Routed experts of each layer."""
    num_experts_per_tok: int
    """Experts that each token takes in each layer."""

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no model has."""
        if self.num_layers < 1:
            raise ValueError(f"num_layers ({self.num_layers}) must be at least 1; count the MoE layers")
        most = min(self.num_experts, _MAX_EXPERTS_PER_TOK)
        if not 1 <= self.num_experts_per_tok <= most:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must be between 1 and num_experts "
                f"({self.num_experts}), at most {_MAX_EXPERTS_PER_TOK}; pass the model's two numbers"
            )

    def check(self, expert_ids_NLK: NDArray[np.integer]) -> NDArray[np.integer]:
        """`expert_ids_NLK` as an array.

        Raises:
            ValueError: it is not an integer array [tokens, layers, experts per token] of this shape, or an id is not in
                [0, num_experts).
        """
        expert_ids_NLK = np.asarray(expert_ids_NLK)
        row = (self.num_layers, self.num_experts_per_tok)
        if expert_ids_NLK.ndim != 3 or expert_ids_NLK.dtype.kind not in "iu" or expert_ids_NLK.shape[1:] != row:
            found = f"{expert_ids_NLK.dtype} {list(expert_ids_NLK.shape)}"
            raise ValueError(
                f"expert_ids ({found}) must be integers [tokens, {row[0]}, {row[1]}]: layers, then experts per token; "
                "pass every chunk as the model routed it"
            )
        lowest, highest = int(expert_ids_NLK.min(initial=0)), int(expert_ids_NLK.max(initial=0))
        if lowest < 0 or highest >= self.num_experts:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"expert_ids ({wrong}) must be at least 0 and below num_experts ({self.num_experts}); "
                "leave out padding and pass the model's num_experts"
            )
        return expert_ids_NLK

    def check_mergeable(self, other: RoutingShape) -> None:
        """Raise ValueError unless `other` is the same shape."""
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if ours != theirs:
                raise ValueError(
                    f"other.{field.name} ({theirs}) must equal {field.name} ({ours}); merge counts of one model only"
                )


def check_some_tokens(num_tokens: int) -> None:
    """Raise ValueError if no token was counted."""
    if num_tokens == 0:
        raise ValueError("expert_ids (0 tokens) must hold at least 1 token; pass more data")


def set_blocks(
    shape: RoutingShape, expert_ids_NLK: NDArray[np.integer]
) -> Iterator[tuple[NDArray[np.integer], NDArray[np.unsignedinteger]]]:
    """Expert ids [experts per token, layers, tokens] and their `set_masks`, as many tokens at a time as stay in cache.

    Raises:
        ValueError: the ids do not have this shape, one is out of range, or a token has one twice in a layer.
    """
    expert_ids_NLK = shape.check(expert_ids_NLK)
    for start in range(0, len(expert_ids_NLK), _BLOCK_TOKENS):
        ids_KLN = np.ascontiguousarray(expert_ids_NLK[start : start + _BLOCK_TOKENS].transpose(2, 1, 0))
        yield ids_KLN, set_masks(ids_KLN, shape.num_experts)


def set_masks(expert_ids_KLN: NDArray[np.integer], num_experts: int) -> NDArray[np.unsignedinteger]:
    """Masks of which bit e says whether expert e is among the top k of a token in a layer.

    Unsigned integers [words, layers, tokens]. One word of 16, 32 or 64 bits holds all experts if it can; more experts
    take several words of 64.

    Raises:
        ValueError: a token has the same expert twice in a layer.
    """
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
