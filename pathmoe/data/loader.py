"""Loaders of prepared blocks. They hold no position: a micro-batch is a function of its step number.

Neither is a `torch.utils.data.DataLoader`, so Lightning takes them as they are: it neither puts its own distributed
sampler in, nor advises on workers.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from pathmoe.data.blocks import Blocks
from pathmoe.data.order import BatchGeometry, Int64Array

Batch = dict[str, Any]
Order = Callable[[Int64Array], Int64Array]
"""The block at each position of the training stream."""


class MicroBatches(Dataset[Batch]):
    """Every micro-batch that one rank will ever train on; number `step * accumulate_grad_batches + micro_batch`."""

    def __init__(self, blocks: Blocks, geometry: BatchGeometry, order: Order) -> None:
        self.blocks = blocks
        self.geometry = geometry
        self.order = order
        self._num_items: tuple[int, int] | None = None

    def __getitem__(self, number: int) -> Batch:
        """The contract's tensors, with `num_items`, `step`, `micro_batch` and `block_ids`."""
        step, micro_batch = divmod(number, self.geometry.accumulate_grad_batches)
        indices = self.order(self.geometry.micro_batch_positions(step, micro_batch))
        return {
            **self.blocks.batch(indices),
            "num_items": self._targets_of(step),
            "step": step,
            "micro_batch": micro_batch,
            "block_ids": indices.tolist(),
        }

    def _targets_of(self, step: int) -> int:
        """Targets of the whole global batch: every rank computes the same number, without communication."""
        if self._num_items is None or self._num_items[0] != step:
            indices = self.order(self.geometry.step_positions(step))
            self._num_items = step, int(self.blocks.num_targets(indices).sum())
        return self._num_items[1]


class TrainLoader:
    """Endless micro-batches of one rank, from the optimizer step that `current_step()` gives when iteration begins."""

    def __init__(self, micro_batches: MicroBatches, current_step: Callable[[], int], num_workers: int = 0) -> None:
        self.micro_batches = micro_batches
        self.current_step = current_step
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches in order, made by the workers where there are any."""
        first = self.current_step() * self.micro_batches.geometry.accumulate_grad_batches
        # Lightning has no end to count to, so a length of the sampler that is never reached does no harm.
        numbers = range(first, sys.maxsize)
        loader = DataLoader(self.micro_batches, sampler=numbers, batch_size=None, num_workers=self.num_workers)
        try:
            yield from loader
        except ValueError as error:
            if not self.num_workers:
                raise
            # A worker's error comes with its traceback in the message.
            raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from error


def batch_ranges(num_blocks: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
    """The first block of each batch of one rank, and the one after its last.

    Every rank gets the same number of batches, since a forward under FSDP waits for the other ranks; no block is
    repeated or padded for that: the sizes of the batches differ by one at most.

    Args:
        num_blocks: at least `world_size`.
        micro_batch_size: the most blocks that a batch should hold; exceeded where there would be no block for a rank.
        rank: whose batches.
        world_size: ranks that share the blocks.
    """
    per_rank = min(-(-num_blocks // (micro_batch_size * world_size)), num_blocks // world_size)
    edges = np.linspace(0, num_blocks, per_rank * world_size + 1).astype(np.int64)
    return [(int(edges[i]), int(edges[i + 1])) for i in range(rank, per_rank * world_size, world_size)]


class ValidationLoader:
    """All blocks of a split, or of each source, once, in order, shared out over the ranks: see `batch_ranges`.

    Args:
        blocks: of the split.
        micro_batch_size: see `batch_ranges`; likewise rank and world_size.
        blocks_of_sources: of a mixture, whose sources share no batch; each batch then has the number of its `source`.
    """

    def __init__(
        self,
        blocks: Blocks,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        blocks_of_sources: Sequence[int] = (),
    ) -> None:
        sizes = blocks_of_sources or [len(blocks)]
        if min(sizes) < world_size:
            raise ValueError(
                f"data.source: its validation split has {min(sizes)} blocks, fewer than there are ranks "
                f"({world_size}); raise data.validation_fraction or data.validation_documents"
            )
        self.blocks = blocks
        self.tells_source = bool(blocks_of_sources)
        self.ranges: list[tuple[int, int, int]] = []
        place: list[float] = []
        for source, (first, size) in enumerate(zip(accumulate([0, *sizes]), sizes, strict=False)):
            ranges = batch_ranges(size, micro_batch_size, rank, world_size)
            self.ranges += [(source, first + start, first + stop) for start, stop in ranges]
            place += [(number + 0.5) / len(ranges) for number in range(len(ranges))]
        # Sources take turns, the same on all ranks, so that the first batches are of all of them.
        self.ranges = [self.ranges[number] for number in np.argsort(place, kind="stable")]

    def __len__(self) -> int:
        """Batches on this rank, the same on all."""
        return len(self.ranges)

    def __iter__(self) -> Iterator[Batch]:
        """The contract's tensors, without the keys that only training needs."""
        for source, start, stop in self.ranges:
            yield self.blocks.batch(np.arange(start, stop)) | ({"source": source} if self.tells_source else {})
