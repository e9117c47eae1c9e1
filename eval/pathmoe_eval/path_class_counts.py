"""Exact counts of (path, class) pairs; a path may be a whole one, a part of one, a single expert or a token id."""

# Shapes: N tokens, L layers of the path, J distinct pairs, P paths, W 64-bit words that hold one pair, C classes.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.paths import check_mergeable, check_range, select_paths

_CLASS_BITS = 16
_CLASS_MASK = np.uint64((1 << _CLASS_BITS) - 1)
_MAX_CELLS_PER_TOKEN = 4
_MIN_PENDING_PAIRS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class JointTable:
    """Counts of distinct pairs, sorted by path, in lexicographic order, then class."""

    starts_P: NDArray[np.int64]
    """The first pair of each path; its pairs follow one another."""
    class_ids_J: NDArray[np.int64]
    """Class of each pair."""
    counts_J: NDArray[np.int64]
    """Tokens of each pair, at least 1."""

    @property
    def path_counts_P(self) -> NDArray[np.int64]:
        """Tokens of each path."""
        return np.add.reduceat(self.counts_J, self.starts_P) if len(self.starts_P) else self.starts_P

    @property
    def class_counts_C(self) -> NDArray[np.int64]:
        """Tokens of each class that occurs, in order of class id."""
        counts = np.zeros(int(self.class_ids_J.max(initial=-1)) + 1, dtype=np.int64)
        np.add.at(counts, self.class_ids_J, self.counts_J)
        return counts[counts > 0]

    def select(self, keep_P: NDArray[np.bool_]) -> JointTable:
        """The rows of some paths, bool [paths]."""
        num_pairs_P = np.diff(self.starts_P, append=len(self.counts_J))
        keep_J, kept_P = np.repeat(keep_P, num_pairs_P), num_pairs_P[keep_P]
        return JointTable(
            starts_P=np.cumsum(kept_P) - kept_P,
            class_ids_J=self.class_ids_J[keep_J],
            counts_J=self.counts_J[keep_J],
        )


@dataclass(frozen=True, kw_only=True)
class FrequentPaths:
    """The most frequent paths of a sample, the most frequent first."""

    paths_PL: NDArray[np.int64]
    """The experts of each, one for each layer."""
    counts_P: NDArray[np.int64]
    """Tokens of each."""
    num_tokens: int
    """Tokens of the sample."""


class PathClassCounts:
    """Counts from batches of any size, in memory proportional to the distinct (path, class) pairs seen.

    Nothing is hashed. The result does not depend on the order of the tokens or on how they were batched or merged.
    """

    def __init__(self, *, num_layers: int, num_experts: int) -> None:
        """Count paths over `num_layers` layers whose expert ids lie in [0, num_experts)."""
        for name, value in (("num_layers", num_layers), ("num_experts", num_experts)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1; pass that of the model")
        self.num_layers = num_layers
        self.num_experts = num_experts
        self._keys_WJ = self._pack(np.empty((0, num_layers), dtype=np.int64), np.empty(0, dtype=np.int64))
        self._counts_J = np.empty(0, dtype=np.int64)
        self._pending: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._num_pending = 0

    def update(self, path_ids_NL: NDArray[np.integer], class_ids_N: NDArray[np.integer]) -> None:
        """Add a batch.

        Args:
            path_ids_NL: integers [tokens, layers].
            class_ids_N: integers [tokens], from 0 and below 2^16.

        Raises:
            ValueError: wrong shape or dtype, or an id out of range.
        """
        path_ids_NL = select_paths(path_ids_NL)
        check_range(path_ids_NL, self.num_layers, self.num_experts)
        class_ids_N = checked_class_ids(class_ids_N, len(path_ids_NL))
        self._append(*_count(self._pack(path_ids_NL, class_ids_N)))

    def merge(self, other: PathClassCounts) -> None:
        """Add everything that `other`, of the same num_layers and num_experts, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two count paths of different shapes.
        """
        check_mergeable((self.num_layers, self.num_experts), (other.num_layers, other.num_experts))
        other._compact()
        self._append(other._keys_WJ, other._counts_J)

    def table(self) -> JointTable:
        """All pairs counted so far."""
        self._compact()
        starts_P = np.flatnonzero(self._is_first_J())
        class_ids_J = (self._keys_WJ[-1] & _CLASS_MASK).astype(np.int64)
        return JointTable(starts_P=starts_P, class_ids_J=class_ids_J, counts_J=self._counts_J)

    def most_frequent(self, num_paths: int) -> FrequentPaths:
        """The paths with the most tokens, at most `num_paths`; of equally frequent ones the first in order.

        Raises:
            ValueError: num_paths is below 1.
        """
        if num_paths < 1:
            raise ValueError(f"num_paths ({num_paths}) must be at least 1; raise it")
        table = self.table()
        counts_P = table.path_counts_P
        chosen_P = np.argsort(-counts_P, kind="stable")[:num_paths]
        keys_WP = self._keys_WJ[:, table.starts_P[chosen_P]]
        return FrequentPaths(
            paths_PL=self._unpack(keys_WP), counts_P=counts_P[chosen_P], num_tokens=int(counts_P.sum())
        )

    def _is_first_J(self) -> NDArray[np.bool_]:
        """Whether a pair is of another path than the one before."""
        is_first_J = np.ones(self._keys_WJ.shape[1], dtype=np.bool_)
        differs_J = (self._keys_WJ[-1, 1:] | _CLASS_MASK) != (self._keys_WJ[-1, :-1] | _CLASS_MASK)
        for word_J in self._keys_WJ[:-1]:
            differs_J |= word_J[1:] != word_J[:-1]
        is_first_J[1:] = differs_J
        return is_first_J

    def _append(self, keys_WJ: NDArray[np.uint64], counts_J: NDArray[np.int64]) -> None:
        self._pending.append((keys_WJ, counts_J))
        self._num_pending += len(counts_J)
        # Waiting until as many wait as are stored keeps both the total sorting and the memory within a factor of two.
        if self._num_pending >= max(_MIN_PENDING_PAIRS, len(self._counts_J)):
            self._compact()

    def _compact(self) -> None:
        if not self._pending:
            return
        keys_WJ = np.concatenate([self._keys_WJ, *(keys for keys, _ in self._pending)], axis=1)
        counts_J = np.concatenate([self._counts_J, *(counts for _, counts in self._pending)])
        self._pending, self._num_pending = [], 0
        self._keys_WJ, self._counts_J = _group(keys_WJ, counts_J)

    @property
    def _bits(self) -> int:
        return max(1, (self.num_experts - 1).bit_length())

    def _layers_of_words(self) -> list[range]:
        """Layers that each word holds; below those of the last one are the bits of the class."""
        in_last, in_others = (64 - _CLASS_BITS) // self._bits, 64 // self._bits
        first_of_last = max(0, self.num_layers - in_last)
        starts = range(0, first_of_last, in_others)
        words = [range(start, min(start + in_others, first_of_last)) for start in starts]
        return [*words, range(first_of_last, self.num_layers)]

    def _pack(self, path_ids_NL: NDArray[np.integer], class_ids_N: NDArray[np.integer]) -> NDArray[np.uint64]:
        words = self._layers_of_words()
        keys_WN = np.zeros((len(words), len(path_ids_NL)), dtype=np.uint64)
        for word_N, layers in zip(keys_WN, words, strict=True):
            for layer in layers:
                word_N <<= np.uint64(self._bits)
                word_N |= path_ids_NL[:, layer].astype(np.uint64)
        keys_WN[-1] <<= np.uint64(_CLASS_BITS)
        keys_WN[-1] |= class_ids_N.astype(np.uint64)
        return keys_WN

    def _unpack(self, keys_WP: NDArray[np.uint64]) -> NDArray[np.int64]:
        paths_PL = np.empty((keys_WP.shape[1], self.num_layers), dtype=np.int64)
        mask = np.uint64((1 << self._bits) - 1)
        for word_P, layers in zip(
            [*keys_WP[:-1], keys_WP[-1] >> np.uint64(_CLASS_BITS)], self._layers_of_words(), strict=True
        ):
            for place, layer in enumerate(reversed(layers)):
                paths_PL[:, layer] = (word_P >> np.uint64(place * self._bits)) & mask
        return paths_PL


def checked_class_ids(class_ids_N: NDArray[np.integer], num_tokens: int) -> NDArray[np.integer]:
    """The class ids as an array.

    Raises:
        ValueError: they are not integers [num_tokens] from 0 and below 2^16.
    """
    class_ids_N = np.asarray(class_ids_N)
    if class_ids_N.dtype.kind not in "iu" or class_ids_N.shape != (num_tokens,):
        found = f"{class_ids_N.dtype} {list(class_ids_N.shape)}"
        raise ValueError(f"class_ids ({found}) must be integers [{num_tokens}]; pass one class for each token")
    lowest, highest = int(class_ids_N.min(initial=0)), int(class_ids_N.max(initial=0))
    if lowest < 0 or highest >= 1 << _CLASS_BITS:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(
            f"class_ids ({wrong}) must be at least 0 and below {1 << _CLASS_BITS}; number the classes from 0"
        )
    return class_ids_N


def _count(keys_WN: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Distinct columns of `keys_WN` in sorted order, with how often each occurs."""
    num_tokens = keys_WN.shape[1]
    if len(keys_WN) > 1:
        return _group(keys_WN, np.ones(num_tokens, dtype=np.int64))
    if int(keys_WN.max(initial=0)) < _MAX_CELLS_PER_TOKEN * num_tokens:
        counts = np.bincount(keys_WN[0].astype(np.int64))
        occurring_J = np.flatnonzero(counts)
        return occurring_J.astype(np.uint64)[None], counts[occurring_J]
    keys_J, counts_J = np.unique(keys_WN[0], return_counts=True)
    return keys_J[None], counts_J


def _group(keys_WN: NDArray[np.uint64], counts_N: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Distinct columns of `keys_WN` in sorted order, the first word first, with the summed counts of each."""
    if keys_WN.shape[1] == 0:
        return keys_WN, counts_N
    order_N = np.argsort(keys_WN[0]) if len(keys_WN) == 1 else np.lexsort(keys_WN[::-1])
    keys_WN = keys_WN[:, order_N]
    is_first_N = np.ones(keys_WN.shape[1], dtype=np.bool_)
    np.any(keys_WN[:, 1:] != keys_WN[:, :-1], axis=0, out=is_first_N[1:])
    starts_J = np.flatnonzero(is_first_N)
    return keys_WN[:, starts_J], np.add.reduceat(counts_N[order_N], starts_J)
