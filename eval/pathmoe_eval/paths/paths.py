"""How concentrated expert paths are: distinct paths, their entropy, and the ceiling that the sample sets on both.

An expert path is the sequence of a token's top-1 experts over the MoE layers (PathMoE, arXiv 2603.18297; that it is
top-1 and not the top-k set is our choice, the paper leaves it open, and `set_size` counts paths of sets instead).
"""

# Shapes: N tokens, L MoE layers, K experts of a set, J = L * K columns, P distinct paths, W 64-bit words that hold one
# path, C distinct values of a count.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.id_range import check_id_range
from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.paths.entropy import chao_shen_bits, plug_in_bits
from pathmoe_eval.paths.path_keys import KeyCounts, bits_per_id, num_words, pack, unpack
from pathmoe_eval.routing_shape import check_some_tokens


@dataclass(frozen=True, kw_only=True)
class PathEntropy:
    """Concentration of the paths of a sample. Compare samples only at equal `num_tokens`."""

    num_tokens: int
    """Tokens that were counted."""
    num_paths: int
    """Distinct paths among them."""
    entropy_bits: float
    """Plug-in Shannon entropy H of the empirical path distribution, in bits; too low while paths are still unseen."""
    effective_paths: float
    """2^H: the number of equally frequent paths with the same entropy."""
    ceiling_bits: float
    """log2(num_tokens): no sample of this size can have a higher `entropy_bits`."""
    entropy_chao_shen_bits: float
    """Coverage-adjusted estimate of the entropy that unlimited data would show, in bits: see `chao_shen_bits`."""


def path_entropy(path_ids_NL: NDArray[np.integer], token_mask_N: NDArray[np.bool_] | None = None) -> PathEntropy:
    """Entropy of the top-1 expert paths of the tokens in memory.

    Args:
        path_ids_NL: integers [tokens, layers], each token's top-1 expert in each layer, counted from 0.
        token_mask_N: bool [tokens], True for tokens that count (False: padding); None counts all.

    Raises:
        ValueError: wrong shape or dtype, a negative id, or no token that counts.
    """
    path_ids_NL = select_paths(path_ids_NL, token_mask_N)
    counts = PathCounts(num_layers=path_ids_NL.shape[1], num_experts=int(path_ids_NL.max(initial=0)) + 1)
    counts.update(path_ids_NL)
    return counts.result()


class PathCounts:
    """Exact counts of expert paths from batches of any size, in memory proportional to the distinct paths seen.

    A path is packed into ceil(log2 num_experts) bits a layer, so equal keys are equal paths. Results do not depend, to
    the last bit, on the order of the tokens or on how they were batched or merged. With `set_size` K > 1 the element of
    a path is not the top-1 expert but the set of the K experts that a layer chose.
    """

    def __init__(self, *, num_layers: int, num_experts: int, set_size: int = 1) -> None:
        """Count paths over `num_layers` layers whose expert ids lie in [0, num_experts)."""
        check_shape(num_layers, num_experts, set_size)
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.set_size = set_size
        num_columns = num_layers * set_size
        self._counts = KeyCounts(
            num_words=num_words(num_columns, num_experts), key_bits=num_columns * bits_per_id(num_experts)
        )

    def update(self, path_ids_NL: NDArray[np.integer], token_mask_N: NDArray[np.bool_] | None = None) -> None:
        """Add a batch of paths (a batch without tokens is fine).

        Args:
            path_ids_NL: integers [tokens, layers] in [0, num_experts); with `set_size` K > 1 the chosen experts,
                [tokens, layers, K] in any order, each once.
            token_mask_N: bool [tokens], True for tokens that count (False: padding); None counts all.

        Raises:
            ValueError: wrong shape or dtype, or an id out of range.
        """
        columns_NJ = select_columns(path_ids_NL, token_mask_N, self.num_layers, self.num_experts, self.set_size)
        self._counts.add(pack(columns_NJ, self.num_experts))

    def merge(self, other: PathCounts) -> None:
        """Add everything that `other`, of the same shape, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two count paths of different shapes.
        """
        check_mergeable(self, other, "num_layers", "num_experts", "set_size")
        self._counts.add(*other._counts.totals())

    def result(self) -> PathEntropy:
        """Entropy of all paths counted so far.

        Raises:
            ValueError: no token was counted.
        """
        sizes_C, multiplicity_C = self.frequencies()
        num_tokens = int(np.sum(sizes_C * multiplicity_C))
        entropy_bits = plug_in_bits(sizes_C, multiplicity_C)
        return PathEntropy(
            num_tokens=num_tokens,
            num_paths=int(multiplicity_C.sum()),
            entropy_bits=entropy_bits,
            effective_paths=2.0**entropy_bits,
            ceiling_bits=math.log2(num_tokens),
            entropy_chao_shen_bits=chao_shen_bits(sizes_C, multiplicity_C),
        )

    def keys(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Distinct paths as `pack` has them, uint64 [words, paths], and tokens of each, int64 [paths]; read only."""
        return self._counts.totals()

    def frequencies(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How often paths occur: ascending distinct counts, int64 [C], and how many paths have each, int64 [C].

        Most statistics of concentration need no more than these few numbers.

        Raises:
            ValueError: no token was counted.
        """
        _, counts_P = self._counts.totals()
        check_some_tokens(len(counts_P))
        return np.unique(counts_P, return_counts=True)

    def most_frequent(self, num_paths: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
        """The `num_paths` most frequent paths (all, if fewer were seen) and their counts.

        Returns:
            Ids [paths, layers], or [paths, layers, set_size] ascending in each set, and counts int64 [paths], highest
            count first; of equal counts the path with the lower expert in the first layer that differs.
        """
        keys_WP, counts_P = self._counts.totals()
        num_paths = min(num_paths, len(counts_P))
        if num_paths < 1:
            return self._unpacked(keys_WP[:, :0]), counts_P[:0]
        lowest = np.partition(counts_P, -num_paths)[-num_paths]
        candidates_P = np.flatnonzero(counts_P >= lowest)
        counts_P, keys_WP = counts_P[candidates_P], keys_WP[:, candidates_P]
        order_P = np.lexsort((*keys_WP[::-1], -counts_P))[:num_paths]
        return self._unpacked(keys_WP[:, order_P]), counts_P[order_P]

    def between(self, first_layer: int, stop_layer: int) -> PathCounts:
        """Counts of the parts of all paths that lie in layers [first_layer, stop_layer): marginal counts."""
        keys_WP, counts_P = self._counts.totals()
        columns = range(first_layer * self.set_size, stop_layer * self.set_size)
        part = PathCounts(num_layers=stop_layer - first_layer, num_experts=self.num_experts, set_size=self.set_size)
        ids_PJ = unpack(keys_WP, self.num_layers * self.set_size, self.num_experts, columns)
        part._counts.add(pack(ids_PJ, self.num_experts), counts_P)
        return part

    def _unpacked(self, keys_WP: NDArray[np.uint64]) -> NDArray[np.unsignedinteger]:
        ids_PJ = unpack(keys_WP, self.num_layers * self.set_size, self.num_experts)
        return ids_PJ if self.set_size == 1 else ids_PJ.reshape(-1, self.num_layers, self.set_size)


def select_paths(
    path_ids_NL: NDArray[np.integer], token_mask_N: NDArray[np.bool_] | None = None
) -> NDArray[np.integer]:
    """Rows of `path_ids_NL` that `token_mask_N` keeps (arguments as in `path_entropy`).

    Raises:
        ValueError: `path_ids_NL` is no 2-D integer array, or `token_mask_N` no bool array with one entry a token.
    """
    path_ids_NL = np.asarray(path_ids_NL)
    if path_ids_NL.ndim != 2 or path_ids_NL.dtype.kind not in "iu":
        found = f"{path_ids_NL.dtype} {list(path_ids_NL.shape)}"
        raise ValueError(f"path_ids ({found}) must be integers [tokens, layers]; pass one top-1 expert per layer")
    if token_mask_N is None:
        return path_ids_NL
    token_mask_N = np.asarray(token_mask_N)
    if token_mask_N.dtype != np.bool_ or token_mask_N.shape != path_ids_NL.shape[:1]:
        found = f"{token_mask_N.dtype} {list(token_mask_N.shape)}"
        raise ValueError(f"token_mask ({found}) must be bool [{len(path_ids_NL)}]; pass one entry per row of path_ids")
    return path_ids_NL[token_mask_N]


def select_columns(
    path_ids_NL: NDArray[np.integer],
    token_mask_N: NDArray[np.bool_] | None,
    num_layers: int,
    num_experts: int,
    set_size: int,
) -> NDArray[np.integer]:
    """Checked ids [tokens, layers * set_size] whose rows are equal where paths are (arguments of `PathCounts`)."""
    if set_size == 1:
        path_ids_NL = select_paths(path_ids_NL, token_mask_N)
        check_range(path_ids_NL, num_layers, num_experts)
        return path_ids_NL
    expert_ids_NLK = np.asarray(path_ids_NL)
    if expert_ids_NLK.ndim != 3 or expert_ids_NLK.shape[2] != set_size:
        raise ValueError(
            f"path_ids ({list(expert_ids_NLK.shape)}) must be [tokens, layers, {set_size}]; "
            "pass each layer's chosen experts, set_size of them"
        )
    num_tokens, found_layers, _ = expert_ids_NLK.shape
    # The columns of a layer are checked as layers of their own, after a check of their number that names layers.
    check_range(expert_ids_NLK[:0, :, 0], num_layers, num_experts)
    columns_NJ = select_paths(expert_ids_NLK.reshape(num_tokens, found_layers * set_size), token_mask_N)
    check_range(columns_NJ, num_layers * set_size, num_experts)
    return np.sort(columns_NJ.reshape(-1, num_layers, set_size), axis=2).reshape(columns_NJ.shape)


def check_shape(num_layers: int, num_experts: int, set_size: int) -> None:
    """Raise ValueError unless there can be such paths."""
    if num_layers < 1:
        raise ValueError(f"num_layers ({num_layers}) must be at least 1; pass one column for each MoE layer")
    if num_experts < 1:
        raise ValueError(f"num_experts ({num_experts}) must be at least 1; pass the model's num_experts")
    if not 1 <= set_size <= num_experts:
        raise ValueError(
            f"set_size ({set_size}) must be between 1 and num_experts ({num_experts}); "
            "pass the model's num_experts_per_tok, or 1 for top-1 paths"
        )


def check_range(path_ids_NL: NDArray[np.integer], num_layers: int, num_experts: int) -> None:
    """Raise ValueError unless there are `num_layers` columns and each id lies in [0, num_experts)."""
    if path_ids_NL.shape[1] != num_layers:
        raise ValueError(
            f"path_ids ({path_ids_NL.shape[1]} layers) must have num_layers ({num_layers}) columns; "
            "pass every batch with the same layers"
        )
    check_id_range(
        path_ids_NL,
        num_experts,
        name="path_ids",
        limit_name="num_experts",
        advice="mask out padding and pass the model's num_experts",
    )
