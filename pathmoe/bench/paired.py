"""Paired timing: what is compared takes turns in one process, since these ratios outlive a machine's moods."""

import statistics
import time
from collections.abc import Callable, Mapping


def paired_seconds(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each candidate's call in each round; the order within a round alternates."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        names = list(candidates) if turn % 2 == 0 else list(candidates)[::-1]
        for name in names:
            start = time.perf_counter()
            candidates[name]()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], numerator: str, denominator: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the rounds' ratios of two candidates' times."""
    ratios = [a / b for a, b in zip(seconds[numerator], seconds[denominator], strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return lower, median, upper
