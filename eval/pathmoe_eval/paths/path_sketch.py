"""Concentration of paths in fixed memory, for more tokens than have their paths counted one by one.

Two parts, each of which does what the other cannot. A sample of the *distinct* paths, those whose key has one of the
lowest mixes (bottom-k sampling), is counted exactly, since a path that is in the sample at the end was in it at its
first token: it speaks for the many rare paths. The heavy paths, too few for a sample to catch in proportion, have a
table (Misra and Gries 1982, merged as Agarwal et al., PODS 2012) and are taken as counted there.
"""

# Shapes: N tokens, L MoE layers, J columns of ids (L, times set_size), P distinct paths, W 64-bit words of a path.

from __future__ import annotations

import copy
import math

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.paths.path_keys import bits_per_id, group, mix, pack, runs, unpack
from pathmoe_eval.paths.paths import check_shape, select_columns
from pathmoe_eval.paths.sketch_estimates import SketchConcentration, estimate
from pathmoe_eval.routing_shape import check_some_tokens

# Tokens that are counted together before they enter the tables: the same ones however batches are cut.
_BLOCK_TOKENS = 1 << 18
# Paths of the table are heavy if they were seen so many times as often as they may have been missed (our choice).
_HEAVY_RATIO = 16


class PathSketch:
    """Distinct paths, entropy and coverage of any number of tokens in fixed memory, with standard errors; mergeable.

    Up to `num_sampled` distinct paths everything is exact. The sample depends on nothing but the set of paths that was
    seen. The table depends on the order of the tokens, though not on how they are cut into batches; merged in another
    order, results differ within their errors.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_experts: int,
        set_size: int = 1,
        num_sampled: int = 1 << 18,
        num_heavy: int = 1 << 16,
    ) -> None:
        """Sketch paths of the shape that `PathCounts` takes, with so many paths in the sample and in the table."""
        check_shape(num_layers, num_experts, set_size)
        for name, value in (("num_sampled", num_sampled), ("num_heavy", num_heavy)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1; pass the number of paths to remember")
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.set_size = set_size
        self.num_sampled = num_sampled
        self.num_heavy = num_heavy
        self.num_tokens = 0
        none_WP = pack(np.empty((0, num_layers * set_size), dtype=np.int64), num_experts)
        zero_P = np.empty(0, dtype=np.int64)
        self._waiting_WN = none_WP
        self._sampled_WP, self._sampled_counts_P = none_WP, zero_P
        self._lowest_left_out = 1 << 64  # the lowest mix of a path that is not in the sample
        # Since its entry a heavy path was seen `counts` times; before, at most `subtracted - known` times.
        self._heavy_WP, self._heavy_counts_P, self._heavy_known_P = none_WP, zero_P, zero_P
        self._subtracted = 0

    def update(self, path_ids_NL: NDArray[np.integer], token_mask_N: NDArray[np.bool_] | None = None) -> None:
        """Add a batch of paths (arguments and errors as in `PathCounts.update`)."""
        columns_NJ = select_columns(path_ids_NL, token_mask_N, self.num_layers, self.num_experts, self.set_size)
        self.num_tokens += len(columns_NJ)
        start = 0
        while start < len(columns_NJ):
            stop = start + _BLOCK_TOKENS - self._waiting_WN.shape[1]
            new_WN = pack(columns_NJ[start:stop], self.num_experts)
            self._waiting_WN = np.concatenate([self._waiting_WN, new_WN], axis=1)
            if self._waiting_WN.shape[1] == _BLOCK_TOKENS:
                self._absorb_waiting()
            start = stop

    def merge(self, other: PathSketch) -> None:
        """Add everything that `other`, of the same shape and sizes, has seen; `other` keeps it.

        Raises:
            ValueError: the two have different shapes or sizes.
        """
        check_mergeable(self, other, "num_layers", "num_experts", "set_size", "num_sampled", "num_heavy")
        other = other._absorbed()
        self.num_tokens += other.num_tokens
        self._lowest_left_out = min(self._lowest_left_out, other._lowest_left_out)
        self._sample(other._sampled_WP, other._sampled_counts_P)
        self._subtracted += other._subtracted
        self._weigh(other._heavy_WP, other._heavy_counts_P, other._heavy_known_P)

    def result(self) -> SketchConcentration:
        """Estimates for all tokens so far.

        Raises:
            ValueError: no token was counted.
        """
        check_some_tokens(self.num_tokens)
        return self._absorbed()._estimate()

    def most_frequent(self, num_paths: int) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64], NDArray[np.int64]]:
        """The `num_paths` paths with the highest counts in the table (all, if fewer), in the order of `PathCounts`.

        Returns:
            Ids [paths, layers] or [paths, layers, set_size]; counts int64 [paths], at most the true ones; and by how
            much the true ones may be higher, int64 [paths].
        """
        now = self._absorbed()
        order_P = np.lexsort((*now._heavy_WP[::-1], -now._heavy_counts_P))[: max(0, num_paths)]
        ids_PJ = unpack(now._heavy_WP[:, order_P], self.num_layers * self.set_size, self.num_experts)
        if self.set_size > 1:
            ids_PJ = ids_PJ.reshape(-1, self.num_layers, self.set_size)
        return ids_PJ, now._heavy_counts_P[order_P], now._subtracted - now._heavy_known_P[order_P]

    def _absorbed(self) -> PathSketch:
        """A copy in whose tables the tokens are that wait here for the rest of their block."""
        now = copy.copy(self)  # tables are replaced, never written to
        now._absorb_waiting()
        return now

    def _absorb_waiting(self) -> None:
        ones_N = np.broadcast_to(np.int64(1), self._waiting_WN.shape[1])
        key_bits = self.num_layers * self.set_size * bits_per_id(self.num_experts)
        keys_WP, counts_P = group(self._waiting_WN, ones_N, key_bits)
        self._waiting_WN = self._waiting_WN[:, :0].copy()
        self._sample(keys_WP, counts_P)
        self._weigh(keys_WP, counts_P, np.zeros_like(counts_P))

    def _sample(self, keys_WP: NDArray[np.uint64], counts_P: NDArray[np.int64]) -> None:
        """Add exact counts to the sample, and keep the paths with the lowest mixes."""
        keys_WP = np.concatenate([self._sampled_WP, keys_WP], axis=1)
        counts_P = np.concatenate([self._sampled_counts_P, counts_P])
        is_below_P = _below(mix(keys_WP), self._lowest_left_out)
        keys_WP, (counts_P,) = _totals(keys_WP[:, is_below_P], counts_P[is_below_P])
        if len(counts_P) > self.num_sampled:
            mixed_P = mix(keys_WP)
            self._lowest_left_out = int(np.partition(mixed_P, self.num_sampled)[self.num_sampled])
            is_below_P = _below(mixed_P, self._lowest_left_out)
            keys_WP, counts_P = keys_WP[:, is_below_P], counts_P[is_below_P]
        self._sampled_WP, self._sampled_counts_P = keys_WP, counts_P

    def _weigh(self, keys_WP: NDArray[np.uint64], counts_P: NDArray[np.int64], known_P: NDArray[np.int64]) -> None:
        """Add counts to the table; if it overflows, subtract what the first path beyond it has, and keep the rest.

        What Misra and Gries store is counts - known. A path that is not in the table was seen at most `subtracted`
        times, and that is at most num_tokens / (num_heavy + 1).
        """
        keys_WP, (counts_P, known_P) = _totals(
            np.concatenate([self._heavy_WP, keys_WP], axis=1),
            np.concatenate([self._heavy_counts_P, counts_P]),
            np.concatenate([self._heavy_known_P, known_P]),
        )
        if len(counts_P) > self.num_heavy:
            surplus_P = counts_P - known_P
            beyond = int(np.partition(surplus_P, -self.num_heavy - 1)[-self.num_heavy - 1])
            is_kept_P = surplus_P > beyond
            keys_WP, counts_P = keys_WP[:, is_kept_P], counts_P[is_kept_P]
            known_P = known_P[is_kept_P] + beyond
            self._subtracted += beyond
        self._heavy_WP, self._heavy_counts_P, self._heavy_known_P = keys_WP, counts_P, known_P

    def _estimate(self) -> SketchConcentration:
        missed_P = self._subtracted - self._heavy_known_P
        chosen_P = self._heavy_counts_P >= _HEAVY_RATIO * missed_P
        missed_P, heavy_P = missed_P[chosen_P], self._heavy_counts_P[chosen_P]
        none_P, zero_P = np.zeros_like(heavy_P), np.zeros_like(self._sampled_counts_P)
        _, (heavy_P, missed_P, sampled_P) = _totals(
            np.concatenate([self._heavy_WP[:, chosen_P], self._sampled_WP], axis=1),
            np.concatenate([heavy_P, zero_P]),
            np.concatenate([missed_P, zero_P]),
            np.concatenate([none_P, self._sampled_counts_P]),
        )
        is_heavy_P, is_sampled_P = heavy_P > 0, sampled_P > 0
        return estimate(
            num_tokens=self.num_tokens,
            heavy_counts_P=np.where(is_sampled_P, sampled_P, heavy_P)[is_heavy_P],  # those of the sample are exact
            num_missed=int(missed_P[~is_sampled_P].sum()),
            sampled_counts_P=sampled_P[~is_heavy_P],
            sampling_probability=math.ldexp(self._lowest_left_out, -64),
        )


def _below(mixed_P: NDArray[np.uint64], bound: int) -> NDArray[np.bool_]:
    return np.ones(len(mixed_P), dtype=np.bool_) if bound == 1 << 64 else mixed_P < np.uint64(bound)


def _totals(
    keys_WP: NDArray[np.uint64], *columns: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], list[NDArray[np.int64]]]:
    """Distinct keys, and for each the sum of every column."""
    if keys_WP.shape[1] == 0:
        return keys_WP, list(columns)
    order_P, starts_P = runs(keys_WP)
    return keys_WP[:, order_P[starts_P]], [np.add.reduceat(column[order_P], starts_P) for column in columns]
