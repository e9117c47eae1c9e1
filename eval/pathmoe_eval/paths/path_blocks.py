"""Concentration of the parts of paths that lie in a block of layers, against layers that choose independently.

Over all layers nearly every token has a path of its own, so that the entropy says how large the sample is. Over a
block of a few layers, such as those that share a router, the same tokens are many per possible path.
"""

# Shapes: N tokens, L MoE layers, B blocks, K experts of a set.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.paths.entropy import miller_madow_bits, plug_in_bits
from pathmoe_eval.paths.paths import PathCounts, select_columns


@dataclass(frozen=True, kw_only=True)
class BlockConcentration:
    """Concentration of the paths through a block of consecutive MoE layers."""

    first_layer: int
    """Index of the block's first layer among the MoE layers, from 0."""
    num_layers: int
    """Layers of the block."""
    num_tokens: int
    """Tokens that were counted."""
    num_paths: int
    """Distinct paths through the block."""
    entropy_bits: float
    """Plug-in entropy of those paths, in bits."""
    effective_paths: float
    """2^entropy_bits."""
    ceiling_bits: float
    """The lower of log2(num_tokens) and the entropy of all possible paths equally often: no entropy is higher."""
    entropy_bits_null: float
    """Entropy of independent layers with the same loads: the sum of the layers' entropies, in unlimited data."""
    total_correlation_bits: float
    """entropy_bits_null - entropy_bits: what the layers tell of one another, whatever the experts are called; too high
    in small samples, and no lower than entropy_bits_null - log2(num_tokens) in any."""
    total_correlation_corrected_bits: float
    """The same from Miller-Madow entropies (also below 0); near 0 for independent layers where num_tokens is far above
    the possible paths, and still too high elsewhere."""


class BlockCounts:
    """Exact counts of the paths through each of several blocks of layers, from batches of any size."""

    def __init__(self, *, blocks: Sequence[range], num_layers: int, num_experts: int, set_size: int = 1):
        """Count in `blocks`, ranges of layers within `num_layers`; the rest as `PathCounts`.

        Raises:
            ValueError: a block that is empty or not within the layers.
        """
        for block in blocks:
            if not 0 <= block.start < block.stop <= num_layers or block.step != 1:
                raise ValueError(
                    f"blocks ({block}) must be of consecutive layers, at least 1, below num_layers ({num_layers}); "
                    "pass layer_blocks or fixed_blocks of the model's layers"
                )
        self.blocks = tuple(blocks)
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.set_size = set_size
        shape = {"num_experts": num_experts, "set_size": set_size}
        self._counts_B = [PathCounts(num_layers=len(block), **shape) for block in self.blocks]

    def update(self, path_ids_NL: NDArray[np.integer], token_mask_N: NDArray[np.bool_] | None = None) -> None:
        """Add a batch of whole paths (arguments and errors as in `PathCounts.update`)."""
        path_ids_NL = np.asarray(path_ids_NL)
        select_columns(path_ids_NL, token_mask_N, self.num_layers, self.num_experts, self.set_size)
        for block, counts in zip(self.blocks, self._counts_B, strict=True):
            counts.update(path_ids_NL[:, block.start : block.stop], token_mask_N)

    def merge(self, other: BlockCounts) -> None:
        """Add everything that `other`, of the same shape and blocks, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two count different blocks, or paths of different shapes.
        """
        check_mergeable(self, other, "blocks")
        for counts, others in zip(self._counts_B, other._counts_B, strict=True):
            counts.merge(others)

    def result(self) -> tuple[BlockConcentration, ...]:
        """Concentration in each block.

        Raises:
            ValueError: no token was counted.
        """
        return tuple(
            block_concentration(counts, first_layer=block.start)
            for block, counts in zip(self.blocks, self._counts_B, strict=True)
        )


def block_concentration(counts: PathCounts, *, first_layer: int = 0) -> BlockConcentration:
    """Concentration of counted paths against independent layers; whole paths are a block of all layers.

    Total correlation (Watanabe 1960, there called multi-information) is the mutual information of more than two
    variables.

    Args:
        counts: paths through the block.
        first_layer: index of its first layer, to be named in the result.

    Raises:
        ValueError: no token was counted.
    """
    paths = counts.frequencies()
    layers = [counts.between(layer, layer + 1).frequencies() for layer in range(counts.num_layers)]
    num_tokens = int(np.sum(paths[0] * paths[1]))
    entropy, null = plug_in_bits(*paths), sum(plug_in_bits(*layer) for layer in layers)
    possible_bits = counts.num_layers * math.log2(math.comb(counts.num_experts, counts.set_size))
    return BlockConcentration(
        first_layer=first_layer,
        num_layers=counts.num_layers,
        num_tokens=num_tokens,
        num_paths=int(paths[1].sum()),
        entropy_bits=entropy,
        effective_paths=2.0**entropy,
        ceiling_bits=min(math.log2(num_tokens), possible_bits),
        entropy_bits_null=null,
        total_correlation_bits=null - entropy,
        total_correlation_corrected_bits=sum(miller_madow_bits(*layer) for layer in layers) - miller_madow_bits(*paths),
    )
