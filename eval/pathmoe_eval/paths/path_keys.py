"""Expert paths as packed integers: equal keys are equal paths, and equal keys are counted together.

Sorting by a 64-bit mix of the key's words instead of by the words themselves takes one fast sort whatever the number
of words; that two paths with the same mix are still told apart is checked on every call.
"""

# Shapes: N tokens, J columns of ids (layers, or layers times set size), P distinct paths, W 64-bit words of a path.

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_MIN_PENDING_KEYS = 1 << 16
# Up to so many bits a table of all possible keys is smaller and faster than a sort.
_TABLE_BITS = 16


class KeyCounts:
    """How often each key was added, exactly, in memory that the distinct keys bound."""

    def __init__(self, *, num_words: int, key_bits: int) -> None:
        """Count keys of `num_words` words, of which `key_bits` bits can be set (see `group`)."""
        self.key_bits = key_bits
        self._keys_WP = np.empty((num_words, 0), dtype=np.uint64)
        self._counts_P = np.empty(0, dtype=np.int64)
        self._pending: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._num_pending = 0
        self._is_sorted = False

    def add(self, keys_WN: NDArray[np.uint64], counts_N: NDArray[np.int64] | None = None) -> None:
        """Add keys uint64 [words, keys], each as often as `counts_N` says, at least 1; None adds each once."""
        counts_N = np.broadcast_to(np.int64(1), keys_WN.shape[1]) if counts_N is None else counts_N
        self._pending.append((keys_WN, counts_N))
        self._num_pending += len(counts_N)
        # Waiting until as many wait as are stored keeps both the total sorting and the memory within a factor of two.
        if self._num_pending >= max(_MIN_PENDING_KEYS, len(self._counts_P)):
            self.totals()

    def totals(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Distinct keys [words, paths] and their counts [paths], in any order; neither is to be written to."""
        if self._pending:
            keys_WN = np.concatenate([self._keys_WP, *(keys for keys, _ in self._pending)], axis=1)
            counts_N = np.concatenate([self._counts_P, *(counts for _, counts in self._pending)])
            self._pending, self._num_pending = [], 0
            self._keys_WP, self._counts_P = group(keys_WN, counts_N, self.key_bits)
            self._is_sorted = False
        return self._keys_WP, self._counts_P

    def sorted_totals(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The same with ascending keys, the first word first."""
        keys_WP, counts_P = self.totals()
        if not self._is_sorted:
            order_P = np.lexsort(keys_WP[::-1])
            self._keys_WP, self._counts_P = keys_WP[:, order_P], counts_P[order_P]
            self._is_sorted = True
        return self._keys_WP, self._counts_P


def pack(ids_NJ: NDArray[np.integer], num_experts: int) -> NDArray[np.uint64]:
    """Keys uint64 [words, tokens] of the rows of integer ids in [0, num_experts); keys sort as the rows do."""
    bits = bits_per_id(num_experts)
    num_tokens, num_columns = ids_NJ.shape
    columns_per_word = 64 // bits
    keys_WN = np.zeros((num_words(num_columns, num_experts), num_tokens), dtype=np.uint64)
    for column in range(num_columns):
        word_N = keys_WN[column // columns_per_word]
        word_N <<= np.uint64(bits)
        word_N |= ids_NJ[:, column].astype(np.uint64)
    return keys_WN


def unpack(
    keys_WP: NDArray[np.uint64], num_columns: int, num_experts: int, columns: Iterable[int] | None = None
) -> NDArray[np.unsignedinteger]:
    """Inverse of `pack`: ids [paths, columns] in the smallest unsigned dtype; `columns` picks some of them."""
    bits = bits_per_id(num_experts)
    columns_per_word = 64 // bits
    chosen = list(range(num_columns) if columns is None else columns)
    ids_PJ = np.empty((keys_WP.shape[1], len(chosen)), dtype=np.min_scalar_type(num_experts - 1))
    for index, column in enumerate(chosen):
        word = column // columns_per_word
        last_in_word = min(num_columns, (word + 1) * columns_per_word) - 1
        ids_PJ[:, index] = (keys_WP[word] >> np.uint64(bits * (last_in_word - column))) & np.uint64((1 << bits) - 1)
    return ids_PJ


def bits_per_id(num_experts: int) -> int:
    """Bits of a key that one expert id takes."""
    return max(1, (num_experts - 1).bit_length())


def num_words(num_columns: int, num_experts: int) -> int:
    """Words of a key."""
    return -(-num_columns // (64 // bits_per_id(num_experts)))


def group(
    keys_WN: NDArray[np.uint64], counts_N: NDArray[np.int64], key_bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Distinct keys, in an order that depends on which keys these are, and the sum of the counts of each.

    Args:
        keys_WN: uint64 [words, tokens] from `pack`.
        counts_N: int64 [tokens], how often each occurs, at least 1.
        key_bits: bits of a key that can be set; few of them, for so many keys, are counted in a table.
    """
    if keys_WN.shape[1] == 0:
        return keys_WN, counts_N.copy()
    if key_bits <= _TABLE_BITS or 1 << key_bits <= keys_WN.shape[1]:
        table = np.zeros(1 << key_bits, dtype=np.int64)
        np.add.at(table, keys_WN[0].view(np.int64), counts_N)
        keys_P = np.flatnonzero(table)
        return keys_P.astype(np.uint64)[None], table[keys_P]
    order_N, starts_P = runs(keys_WN)
    firsts_P = order_N[starts_P]
    counts_P = np.add.reduceat(counts_N[order_N], starts_P)
    del order_N
    return np.stack([word_N[firsts_P] for word_N in keys_WN]), counts_P


def runs(keys_WN: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """An order [tokens] that puts equal keys side by side, and where in it each distinct key starts, [paths]."""
    mixed_N = mix(keys_WN)
    order_N = np.argsort(mixed_N)
    starts_N, is_first_N = _changes(mixed_N[None], order_N), _changes(keys_WN, order_N)
    if not np.array_equal(starts_N, is_first_N):  # two keys have one mix: order those by the keys themselves
        order_N = np.lexsort((*keys_WN, mixed_N))
        is_first_N = _changes(keys_WN, order_N)
    return order_N, np.flatnonzero(is_first_N)


def _changes(keys_WN: NDArray[np.uint64], order_N: NDArray[np.intp]) -> NDArray[np.bool_]:
    is_first_N = np.zeros(len(order_N), dtype=np.bool_)
    is_first_N[0] = True
    for word_N in keys_WN:
        sorted_N = word_N[order_N]
        is_first_N[1:] |= sorted_N[1:] != sorted_N[:-1]
    return is_first_N


def mix(keys_WN: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A uniform-looking uint64 [tokens] of each key, the same in every process.

    Each word goes through the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), added to the mix of the words
    before it; the finaliser is a bijection, so keys of one word never collide.
    """
    mixed_N = np.zeros(keys_WN.shape[1], dtype=np.uint64)
    for word_N in keys_WN:
        mixed_N += word_N
        mixed_N += np.uint64(0x9E3779B97F4A7C15)
        mixed_N ^= mixed_N >> np.uint64(30)
        mixed_N *= np.uint64(0xBF58476D1CE4E5B9)
        mixed_N ^= mixed_N >> np.uint64(27)
        mixed_N *= np.uint64(0x94D049BB133111EB)
        mixed_N ^= mixed_N >> np.uint64(31)
    return mixed_N
