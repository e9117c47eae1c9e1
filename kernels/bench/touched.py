"""Which bytes the loads and stores of each launch touch, counted in Triton's interpreter."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from accesses import watched
from torch import Tensor

SIDES = {"load": ["reads"], "store": ["writes"], "update": ["reads", "writes"]}
"""Which side of a `Launch` an access counts on."""


class Touched(NamedTuple):
    """Bytes of one kernel argument."""

    distinct: int
    """Each counted once."""
    touched: int
    """Each counted as often as it was read, or written."""


@dataclass
class Launch:
    """One launch of a kernel, and the bytes of its arguments by their names without `_ptr`."""

    kernel: str
    """Name without `_kernel`."""
    reads: dict[str, Touched]
    writes: dict[str, Touched]


class _Memory:
    """The elements of one tensor argument, and how often each was touched."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name.removesuffix("_ptr")
        self.first, self.size = tensor.data_ptr(), tensor.element_size()
        self.end = self.first + tensor.numel() * self.size
        self.reads, self.writes = (np.zeros(tensor.numel(), dtype=np.int64) for _ in range(2))

    def touched(self, counts: np.ndarray) -> Touched:
        return Touched(int(np.count_nonzero(counts)) * self.size, int(counts.sum()) * self.size)


class _Counter:
    """What has been launched so far, each with the memory that it was handed."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, list[_Memory]]] = []

    def launch(self, kernel: str, arguments: dict[str, Any]) -> None:
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        by_address: dict[int, _Memory] = {}
        for name, tensor in tensors.items():
            # A tensor that is passed twice counts under its first name.
            by_address.setdefault(tensor.data_ptr(), _Memory(name, tensor))
        self.launches.append((kernel, list(by_address.values())))

    def access(self, kind: str, _builder: Any, pointers: Any, mask: Any) -> Any:
        addresses = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.data.shape))
        addresses = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)].astype(np.int64)
        for side in SIDES[kind]:
            self._count(side, addresses)
        return mask

    def _count(self, side: str, addresses: np.ndarray) -> None:
        found = 0
        for memory in self.launches[-1][1]:
            its = addresses[(addresses >= memory.first) & (addresses < memory.end)]
            np.add.at(getattr(memory, side), (its - memory.first) // memory.size, 1)
            found += its.size
        assert found == addresses.size, f"{addresses.size - found} {side} outside of all arguments"


def _counted(kernel: str, memories: list[_Memory]) -> Launch:
    reads, writes = (
        {memory.name: memory.touched(counts) for memory in memories if (counts := getattr(memory, side)).any()}
        for side in ("reads", "writes")
    )
    return Launch(kernel.removesuffix("_kernel"), reads, writes)


def count_touched(launch: Callable[[], object]) -> list[Launch]:
    """What the kernels that `launch` launches touch, in order. They must have been imported to be interpreted.

    Raises:
        InterpreterError: a kernel touched memory outside of its tensor arguments.
    """
    counter = _Counter()
    with watched(counter.launch, counter.access):
        launch()
    return [_counted(*one) for one in counter.launches]
