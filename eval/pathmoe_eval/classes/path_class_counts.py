"""Exact counts of (path, class) pairs; a path may be a whole one, a part of one, a single expert or a token id."""

# Shapes: N tokens, L layers of the path, J distinct pairs, P paths, W 64-bit words that hold one pair, C classes.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.id_range import check_id_range, check_one_per_token
from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.paths.path_keys import KeyCounts, bits_per_id, num_words, pack, unpack
from pathmoe_eval.paths.paths import check_range, select_paths

_CLASS_BITS = 16


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
    class_counts_P: tuple[dict[int, int], ...]
    """Tokens of each by their class."""
    num_tokens: int
    """Tokens of the sample."""


class PathClassCounts:
    """Counts from batches of any size, in memory proportional to the distinct (path, class) pairs seen.

    The result does not depend on the order of the tokens or on how they were batched or merged.
    """

    def __init__(self, *, num_layers: int, num_experts: int) -> None:
        """Count paths over `num_layers` layers whose expert ids lie in [0, num_experts)."""
        for name, value in (("num_layers", num_layers), ("num_experts", num_experts)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1; pass that of the model")
        self.num_layers = num_layers
        self.num_experts = num_experts
        path_words = num_words(num_layers, num_experts)
        layers_of_last_word = num_layers - (path_words - 1) * (64 // bits_per_id(num_experts))
        self._class_shares_word = layers_of_last_word * bits_per_id(num_experts) + _CLASS_BITS <= 64
        words = path_words if self._class_shares_word else path_words + 1
        key_bits = num_layers * bits_per_id(num_experts) + _CLASS_BITS if self._class_shares_word else 64 * words
        self._counts = KeyCounts(num_words=words, key_bits=key_bits)

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
        self._counts.add(self._pack(path_ids_NL, class_ids_N))

    def merge(self, other: PathClassCounts) -> None:
        """Add everything that `other`, of the same num_layers and num_experts, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two count paths of different shapes.
        """
        check_mergeable(self, other, "num_layers", "num_experts")
        self._counts.add(*other._counts.totals())

    def between(self, first_layer: int, stop_layer: int) -> PathClassCounts:
        """Counts of the parts of all paths in layers [first_layer, stop_layer), with their classes."""
        keys_WJ, counts_J = self._counts.totals()
        part = PathClassCounts(num_layers=stop_layer - first_layer, num_experts=self.num_experts)
        layers = range(first_layer, stop_layer)
        path_ids_JL = unpack(self._path_keys(keys_WJ), self.num_layers, self.num_experts, layers)
        part._counts.add(part._pack(path_ids_JL, _classes(keys_WJ)), counts_J)
        return part

    def table(self) -> JointTable:
        """All pairs counted so far."""
        keys_WJ, counts_J = self._counts.sorted_totals()
        paths_WJ = self._path_keys(keys_WJ)
        is_first_J = np.ones(len(counts_J), dtype=np.bool_)
        np.any(paths_WJ[:, 1:] != paths_WJ[:, :-1], axis=0, out=is_first_J[1:])
        class_ids_J = _classes(keys_WJ).astype(np.int64)
        return JointTable(starts_P=np.flatnonzero(is_first_J), class_ids_J=class_ids_J, counts_J=counts_J)

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
        keys_WJ, _ = self._counts.sorted_totals()
        keys_WP = self._path_keys(keys_WJ[:, table.starts_P[chosen_P]])
        stops_P = np.append(table.starts_P, len(table.counts_J))[chosen_P + 1]
        pairs = [slice(*pair) for pair in zip(table.starts_P[chosen_P].tolist(), stops_P.tolist(), strict=True)]
        return FrequentPaths(
            paths_PL=unpack(keys_WP, self.num_layers, self.num_experts).astype(np.int64),
            counts_P=counts_P[chosen_P],
            class_counts_P=tuple(
                dict(zip(table.class_ids_J[of].tolist(), table.counts_J[of].tolist(), strict=True)) for of in pairs
            ),
            num_tokens=int(counts_P.sum()),
        )

    def _pack(self, path_ids_NL: NDArray[np.integer], class_ids_N: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Keys that sort by path, then class: the class is below the path's last word, or a word of its own."""
        keys_WN, class_ids_N = pack(path_ids_NL, self.num_experts), class_ids_N.astype(np.uint64)
        if not self._class_shares_word:
            return np.concatenate([keys_WN, class_ids_N[None]])
        keys_WN[-1] <<= np.uint64(_CLASS_BITS)
        keys_WN[-1] |= class_ids_N
        return keys_WN

    def _path_keys(self, keys_WJ: NDArray[np.uint64]) -> NDArray[np.uint64]:
        if not self._class_shares_word:
            return keys_WJ[:-1]
        return np.concatenate([keys_WJ[:-1], keys_WJ[-1:] >> np.uint64(_CLASS_BITS)])


def _classes(keys_WJ: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return keys_WJ[-1] & np.uint64((1 << _CLASS_BITS) - 1)


def checked_class_ids(class_ids_N: NDArray[np.integer], num_tokens: int) -> NDArray[np.integer]:
    """The class ids as an array.

    Raises:
        ValueError: they are not integers [num_tokens] from 0 and below 2^16.
    """
    class_ids_N = check_one_per_token(class_ids_N, num_tokens, name="class_ids")
    check_id_range(class_ids_N, 1 << _CLASS_BITS, name="class_ids", advice="number the classes from 0")
    return class_ids_N
