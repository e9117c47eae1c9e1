"""How concentrated expert paths are: distinct paths, their entropy, and the ceiling that the sample sets on both.

An expert path is the sequence of a token's top-1 experts over the MoE layers (PathMoE, arXiv 2603.18297; that it is
top-1 and not the top-k set is our choice, the paper leaves it open).
"""

# Shapes: N tokens, L MoE layers, P distinct paths, W 64-bit words that hold one path, C distinct values of a count.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MIN_PENDING_PATHS = 1 << 16


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

    A path is packed into ceil(log2 num_experts) bits a layer, so equal keys are equal paths (no hashing). The result
    does not depend, to the last bit, on the order of the tokens or on how they were batched or merged.
    """

    def __init__(self, *, num_layers: int, num_experts: int) -> None:
        """Count paths over `num_layers` layers whose expert ids lie in [0, num_experts)."""
        if num_layers < 1:
            raise ValueError(f"num_layers ({num_layers}) must be at least 1; pass one column for each MoE layer")
        if num_experts < 1:
            raise ValueError(f"num_experts ({num_experts}) must be at least 1; pass the model's num_experts")
        self.num_layers = num_layers
        self.num_experts = num_experts
        self._keys_WP = _pack(np.empty((0, num_layers), dtype=np.int64), num_experts)
        self._counts_P = np.empty(0, dtype=np.int64)
        self._pending: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._num_pending = 0

    def update(self, path_ids_NL: NDArray[np.integer], token_mask_N: NDArray[np.bool_] | None = None) -> None:
        """Add a batch of paths (arguments and errors as in `path_entropy`; a batch without tokens is fine)."""
        path_ids_NL = select_paths(path_ids_NL, token_mask_N)
        check_range(path_ids_NL, self.num_layers, self.num_experts)
        keys_WN = _pack(path_ids_NL, self.num_experts)
        self._append(*_group(keys_WN, np.ones(keys_WN.shape[1], dtype=np.int64)))

    def merge(self, other: PathCounts) -> None:
        """Add everything that `other`, of the same num_layers and num_experts, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two count paths of different shapes.
        """
        check_mergeable((self.num_layers, self.num_experts), (other.num_layers, other.num_experts))
        other._compact()
        self._append(other._keys_WP, other._counts_P)

    def result(self) -> PathEntropy:
        """Entropy of all paths counted so far.

        Raises:
            ValueError: no token was counted.
        """
        self._compact()
        # The entropies need only how many paths were seen c times, for each c: a sum in an order of its own.
        sizes_C, multiplicity_C = np.unique(self._counts_P, return_counts=True)
        num_tokens = int(self._counts_P.sum())
        check_not_empty(num_tokens)
        share_C = multiplicity_C * sizes_C / num_tokens
        entropy_bits = float(np.sum(share_C * np.log2(num_tokens / sizes_C)))
        return PathEntropy(
            num_tokens=num_tokens,
            num_paths=len(self._counts_P),
            entropy_bits=entropy_bits,
            effective_paths=2.0**entropy_bits,
            ceiling_bits=math.log2(num_tokens),
            entropy_chao_shen_bits=chao_shen_bits(sizes_C, multiplicity_C),
        )

    def _append(self, keys_WP: NDArray[np.uint64], counts_P: NDArray[np.int64]) -> None:
        self._pending.append((keys_WP, counts_P))
        self._num_pending += len(counts_P)
        # Waiting until as many wait as are stored keeps both the total sorting and the memory within a factor of two.
        if self._num_pending >= max(_MIN_PENDING_PATHS, len(self._counts_P)):
            self._compact()

    def _compact(self) -> None:
        if not self._pending:
            return
        keys_WP = np.concatenate([self._keys_WP, *(keys for keys, _ in self._pending)], axis=1)
        counts_P = np.concatenate([self._counts_P, *(counts for _, counts in self._pending)])
        self._pending, self._num_pending = [], 0
        self._keys_WP, self._counts_P = _group(keys_WP, counts_P)


def chao_shen_bits(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> float:
    """Chao-Shen estimate, in bits, of the entropy of a distribution with unseen outcomes.

    With n samples of which f1 outcomes were seen once, coverage c = 1 - f1/n and q = c * count/n, the estimate is the
    sum over seen outcomes of -q log2(q) / (1 - (1 - q)^n): Good-Turing coverage inside a Horvitz-Thompson sum (Chao
    and Shen, Environmental and Ecological Statistics 10, 2003, 429-443). When every outcome was seen once we set
    f1 = n - 1, since coverage 0 has no estimate (our choice).

    Limits: it assumes independent draws, which the tokens of a text are not; it has a large variance when most paths
    were seen once, and stays too low on heavy tails. No estimator is unbiased for every distribution (Paninski,
    Neural Computation 15, 2003), so read it as a hint of how far `entropy_bits` is limited by the sample, not as a
    measurement.

    Args:
        sizes_C: int64 [C], distinct values that the count of an outcome takes, each at least 1.
        multiplicity_C: int64 [C], how many outcomes have that count.
    """
    num_samples = int(np.sum(sizes_C * multiplicity_C))
    num_singletons = int(np.sum(multiplicity_C[sizes_C == 1]))
    coverage = 1.0 - min(num_singletons, num_samples - 1) / num_samples
    q_C = coverage * sizes_C / num_samples
    with np.errstate(divide="ignore"):  # q = 1 is certain to be seen: log1p(-1) = -inf gives that probability, 1
        seen_probability_C = -np.expm1(num_samples * np.log1p(-q_C))
    return float(np.sum(multiplicity_C * q_C * -np.log2(q_C) / seen_probability_C)) + 0.0  # + 0.0: no negative zero


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


def check_range(path_ids_NL: NDArray[np.integer], num_layers: int, num_experts: int) -> None:
    """Raise ValueError unless there are `num_layers` columns and each id lies in [0, num_experts)."""
    if path_ids_NL.shape[1] != num_layers:
        raise ValueError(
            f"path_ids ({path_ids_NL.shape[1]} layers) must have num_layers ({num_layers}) columns; "
            "pass every batch with the same layers"
        )
    lowest, highest = int(path_ids_NL.min(initial=0)), int(path_ids_NL.max(initial=0))
    if lowest < 0 or highest >= num_experts:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"path_ids ({wrong}) must be at least 0 and below num_experts ({num_experts}); "
            "mask out padding and pass the model's num_experts"
        )


def check_mergeable(shape: tuple[int, int], other_shape: tuple[int, int]) -> None:
    """Raise ValueError unless two accumulators have the same (num_layers, num_experts)."""
    for name, ours, theirs in zip(("num_layers", "num_experts"), shape, other_shape, strict=True):
        if ours != theirs:
            raise ValueError(f"other.{name} ({theirs}) must equal {name} ({ours}); merge counts of one model only")


def check_not_empty(num_tokens: int) -> None:
    """Raise ValueError if no token was counted."""
    if num_tokens == 0:
        raise ValueError("path_ids (0 tokens that count) must hold at least 1; pass more data or a wider token_mask")


def _pack(path_ids_NL: NDArray[np.integer], num_experts: int) -> NDArray[np.uint64]:
    bits = max(1, (num_experts - 1).bit_length())
    num_tokens, num_layers = path_ids_NL.shape
    layers_per_word = 64 // bits
    keys_WN = np.zeros((-(-num_layers // layers_per_word), num_tokens), dtype=np.uint64)
    for layer in range(num_layers):
        word_N = keys_WN[layer // layers_per_word]
        word_N <<= np.uint64(bits)
        word_N |= path_ids_NL[:, layer].astype(np.uint64)
    return keys_WN


def _group(keys_WN: NDArray[np.uint64], counts_N: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Distinct columns of `keys_WN` in sorted order, with the summed counts of each."""
    if keys_WN.shape[1] == 0:
        return keys_WN, counts_N
    order_N = np.argsort(keys_WN[0]) if len(keys_WN) == 1 else np.lexsort(keys_WN)
    keys_WN = keys_WN[:, order_N]
    is_first_N = np.ones(keys_WN.shape[1], dtype=np.bool_)
    np.any(keys_WN[:, 1:] != keys_WN[:, :-1], axis=0, out=is_first_N[1:])
    starts_P = np.flatnonzero(is_first_N)
    return keys_WN[:, starts_P], np.add.reduceat(counts_N[order_N], starts_P)
