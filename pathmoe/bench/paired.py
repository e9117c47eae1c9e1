"""Paired timing: what is compared takes turns in one process, since these ratios outlive a machine's moods."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Timer = Callable[[Callable[[], object]], float]
"""Runs a call and gives its seconds."""


def wall_seconds(call: Callable[[], object]) -> float:
    """Seconds of a call by the wall clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cuda_timer(flushed_bytes: int = 2 << 30) -> Timer:
    """Seconds of a call on the current CUDA stream, between two events, beginning with none of its data in a cache.

    Before the first event a buffer is read that is far larger than the second-level cache. It is read and not written,
    as lines that were written would go to memory while the call runs. It also keeps the device busy for longer than
    the host needs to launch the first kernels, so that a short call's time is not that of its launch.

    Args:
        flushed_bytes: size of the buffer.
    """
    buffer = torch.zeros(flushed_bytes // 4, dtype=torch.float32, device="cuda")

    def cuda_seconds(call: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        buffer.sum()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3  # of milliseconds

    return cuda_seconds


def paired_seconds(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2, seconds_of: Timer = wall_seconds
) -> dict[str, list[float]]:
    """Seconds of each candidate's call in each round; the order within a round alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        names = list(candidates) if turn % 2 == 0 else list(candidates)[::-1]
        for name in names:
            elapsed = seconds_of(candidates[name])
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    lower, median, upper = statistics.quantiles(values, n=4)
    return lower, median, upper


def ratio(seconds: Mapping[str, list[float]], numerator: str, denominator: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the rounds' ratios of two candidates' times."""
    return quartiles([a / b for a, b in zip(seconds[numerator], seconds[denominator], strict=True)])
