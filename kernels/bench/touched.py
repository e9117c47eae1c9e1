"""Which bytes the loads and stores of each launch touch, counted in Triton's interpreter."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder


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
    """What has been launched so far, the last one perhaps still running."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.memories: list[_Memory] = []

    def begin(self, arguments: dict[str, Any]) -> None:
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        by_address: dict[int, _Memory] = {}
        for name, tensor in tensors.items():
            # A tensor that is passed twice counts under its first name.
            by_address.setdefault(tensor.data_ptr(), _Memory(name, tensor))
        self.memories = list(by_address.values())

    def end(self, kernel: str) -> None:
        sides = [
            {memory.name: memory.touched(counts) for memory in self.memories if (counts := getattr(memory, side)).any()}
            for side in ("reads", "writes")
        ]
        self.launches.append(Launch(kernel.removesuffix("_kernel"), *sides))

    def count(self, side: str, pointers: Any, mask: Any) -> None:
        addresses = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.data.shape))
        addresses = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)].astype(np.int64)
        found = 0
        for memory in self.memories:
            its = addresses[(addresses >= memory.first) & (addresses < memory.end)]
            np.add.at(getattr(memory, side), (its - memory.first) // memory.size, 1)
            found += its.size
        assert found == addresses.size, f"{addresses.size - found} {side} outside of all arguments"


@contextmanager
def _hooks(counter: _Counter) -> Iterator[None]:
    # Unmasked loads and stores come here too, with a mask of ones. What follows the mask differs between versions.
    builder, run = InterpreterBuilder, InterpretedFunction.run
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def counted_run(self: Any, *args: Any, **options: Any) -> None:
        named = dict(zip(self.arg_names, args, strict=False)) | options
        counter.begin({name: named[name] for name in self.arg_names if name in named})
        run(self, *args, **options)
        counter.end(self.fn.__name__)

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        counter.count("reads", pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counter.count("writes", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted_atomic(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counter.count("reads", pointers, mask)
        counter.count("writes", pointers, mask)
        return atomic(self, operation, pointers, value, mask, *rest)

    with ExitStack() as stack:
        stack.enter_context(patch.object(InterpretedFunction, "run", counted_run))
        stack.enter_context(patch.object(builder, "create_masked_load", counted_load))
        stack.enter_context(patch.object(builder, "create_masked_store", counted_store))
        stack.enter_context(patch.object(builder, "create_atomic_rmw", counted_atomic))
        yield


def count_touched(launch: Callable[[], object]) -> list[Launch]:
    """What the kernels that `launch` launches touch, in order. They must have been imported to be interpreted.

    Raises:
        InterpreterError: a kernel touched memory outside of its tensor arguments.
    """
    counter = _Counter()
    with _hooks(counter):
        launch()
    return counter.launches
