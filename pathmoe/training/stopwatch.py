"""Time that a device spends in stretches of the program, added up without waiting for it."""

import time

import torch


class Stopwatch:
    """Adds up stretches between `start` and `stop`: on CUDA by events in the current stream, elsewhere on the clock.

    Args:
        device: whose time.
    """

    def __init__(self, device: torch.device) -> None:
        self._uses_events = device.type == "cuda"
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0
        self._started: float | torch.cuda.Event = 0.0

    def start(self) -> None:
        """Begin a stretch."""
        self._started = _event_now() if self._uses_events else time.perf_counter()

    def stop(self) -> None:
        """End the stretch."""
        if isinstance(self._started, float):
            self._seconds += time.perf_counter() - self._started
        else:
            self._pending.append((self._started, _event_now()))
            self._add_what_is_over()

    def take(self) -> float:
        """Seconds of all stretches since the last call; one that the device has not come to the end of counts later."""
        self._add_what_is_over()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _add_what_is_over(self) -> None:
        while self._pending and self._pending[0][1].query():
            start, stop = self._pending.pop(0)
            self._seconds += start.elapsed_time(stop) / 1000


def _event_now() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
