"""Compile what a launch would compile, for GPUs that are not there."""

import functools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CUOBJDUMP = os.path.join(os.path.dirname(triton.backends.nvidia.__file__), "bin", "cuobjdump")

SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Shared memory that a block may have, bytes, by compute capability (CUDA C++ Programming Guide, table of limits)."""


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    kernel: str
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread's stack frame, which holds spilled registers."""
    shared: int
    """Bytes of a block's shared memory."""
    warps: int
    tokens: int | None
    """Tokens of a tile, for kernels that work on tiles of tokens by experts."""


class _OfflineDriver:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """The GPU to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """One device for each target: Triton keeps compiled kernels by device."""
        return self.target.arch

    def get_current_stream(self, _device: int) -> int:
        """No stream."""
        return 0


@contextmanager
def _compiling_only(capability: int, compiled: list[tuple[Any, int | None]]) -> Iterator[None]:
    run = JITFunction.run

    @functools.wraps(run)
    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((kernel, kwargs.get("BLOCK_T")))
        return kernel

    # For good: a process that compiles for other GPUs launches nothing.
    driver.set_active(_OfflineDriver(capability))
    with patch.object(JITFunction, "run", compile_only):
        yield


def resources(launch: Callable[[], object], capability: int) -> list[Resources]:
    """What the kernels take that `launch` would launch, in order; nothing runs, so tensors may lie anywhere.

    Args:
        launch: calls the launchers with tensors of the shapes and dtypes in question.
        capability: 80, 90 or 100.
    """
    compiled: list[tuple[Any, int | None]] = []
    with _compiling_only(capability, compiled):
        launch()
    return [_resources(kernel, tokens) for kernel, tokens in compiled]


def _resources(kernel: Any, tokens: int | None) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", cubin.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = next(line for line in printed.splitlines() if "REG:" in line)
    fields = dict(field.split(":") for field in usage.split() if ":" in field)
    # What cuobjdump calls shared is static; Triton asks for its own at launch.
    metadata = kernel.metadata
    return Resources(
        metadata.name, int(fields["REG"]), int(fields["STACK"]), metadata.shared, metadata.num_warps, tokens
    )
