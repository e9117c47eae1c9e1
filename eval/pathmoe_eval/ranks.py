"""Counts of all ranks, put together."""

from typing import Protocol, Self, TypeVar

import torch.distributed as dist


class Mergeable(Protocol):
    """An accumulator that takes over what another of its kind has counted."""

    def merge(self, other: Self) -> None:
        """Add everything that `other` has counted."""


Counts = TypeVar("Counts", bound=Mergeable)


def merged_over_ranks(counts: Counts) -> Counts:
    """The counts of all ranks, on every rank; on one process, the counts themselves. Every rank must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    of_ranks: list[Counts] = [counts] * dist.get_world_size()
    dist.all_gather_object(of_ranks, counts)
    merged = of_ranks[0]
    for other in of_ranks[1:]:
        merged.merge(other)
    return merged
