"""Which blocks an optimizer step reads: a function of (seed, epoch, position) alone.

Nothing is shuffled in memory and no sampler has state: position p of the training stream is block
`permute(p % n)` of epoch `p // n`, so a resumed run, or one on other ranks, knows its batches from the step number.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

_NUM_ROUNDS = 6
_MASK_64 = (1 << 64) - 1


def _round_keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    """One 64-bit key per Feistel round, from splitmix64 (Steele, Lea, Flood 2014) chained over seed and epoch."""
    state = 0
    for word in (seed, epoch):
        state = int(_mix(np.array([(state ^ word) & _MASK_64], dtype=np.uint64))[0])
    counters = [(state + (i + 1) * 0x9E3779B97F4A7C15) & _MASK_64 for i in range(_NUM_ROUNDS)]
    return _mix(np.array(counters, dtype=np.uint64))


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection on 64-bit integers in which every input bit reaches every output bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: Int64Array, num_blocks: int, seed: int, epoch: int) -> Int64Array:
    """Pseudo-random permutation of range(num_blocks), keyed by seed and epoch, in O(1) memory.

    A balanced Feistel network is a bijection of [0, 4^h); a result outside [0, num_blocks) goes through it again
    (cycle walking, Black and Rogaway 2002), which makes it a bijection of [0, num_blocks).

    positions: int64 in [0, num_blocks), any shape. Returns int64 of that shape. Integer arithmetic only.
    """
    half_bits = max(1, ((num_blocks - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    keys = _round_keys(seed, epoch)
    result = positions.astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> shift, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        result[outside] = (left << shift) | right
        outside = result >= np.uint64(num_blocks)
    return result.astype(np.int64)


def block_indices(positions: Int64Array, num_blocks: int, seed: int) -> Int64Array:
    """Block read at each position of the endless training stream; each epoch reads every block exactly once.

    positions: int64 [P], global positions from 0 on. Returns int64 [P], indices in [0, num_blocks).
    """
    epochs, offsets = np.divmod(positions, num_blocks)
    indices = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permute(offsets[here], num_blocks, seed, int(epoch))
    return indices


@dataclass(frozen=True, kw_only=True)
class BatchGeometry:
    """How the global batch of one optimizer step is cut into micro-batches and ranks."""

    micro_batch_size: int
    """Blocks per forward on one rank."""
    accumulate_grad_batches: int = 1
    """Micro-batches per optimizer step on one rank."""
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch_size(self) -> int:
        """Blocks per optimizer step over all ranks and micro-batches."""
        return self.micro_batch_size * self.accumulate_grad_batches * self.world_size

    def step_positions(self, step: int) -> Int64Array:
        """Positions of the whole global batch of a step; the same for every way of cutting it. int64 [global batch]."""
        return np.arange(step * self.global_batch_size, (step + 1) * self.global_batch_size, dtype=np.int64)

    def micro_batch_positions(self, step: int, micro_batch: int) -> Int64Array:
        """Positions that this rank reads in one micro-batch of a step. int64 [micro_batch_size]."""
        first = ((step * self.accumulate_grad_batches + micro_batch) * self.world_size + self.rank) * (
            self.micro_batch_size
        )
        return np.arange(first, first + self.micro_batch_size, dtype=np.int64)
