"""Ctrl-C, SIGTERM, SIGUSR1, by which SLURM says that time is short, and SIGHUP, when a terminal is closed.

While a model trains they wait for the end of the step, otherwise they end the program.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal has ended the program, with the status that a shell gives for it.

    Of KeyboardInterrupt Lightning would make the status 1.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.line = "stopped"
        """What the user is told."""


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Within it, a signal raises `Stopped`."""
    before = _handle(_stop)
    try:
        yield
    finally:
        _restore(before)


class StopSignals:
    """Keeps the first signal until it is asked for; a second one raises `Stopped`."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin to keep signals, in place of what took them so far: Lightning, for one, would act within a step."""
        self._signum = None
        self._before = _handle(self._keep)

    def leave(self) -> None:
        """Leave signals to what took them before."""
        _restore(self._before)
        self._before = {}

    def received(self, trainer: Trainer) -> int | None:
        """The signal that this rank or another one has had; every rank must call this, and all stop or none."""
        if trainer.world_size == 1:
            return self._signum
        anywhere = trainer.strategy.reduce_boolean_decision(self._signum is not None, all=False)
        return (self._signum or signal.SIGINT) if anywhere else None

    def _keep(self, signum: int) -> None:
        if self._signum is not None:
            _stop(signum)
        self._signum = signum


def _stop(signum: int) -> None:
    raise Stopped(signum)


def _handle(handler: Callable[[int], None]) -> dict[int, Any]:
    """Have `handler` take the signals; returns what took them before. Only a main thread can."""
    process = os.getpid()

    def handle(signum: int, _: Any) -> None:
        if os.getpid() == process:
            handler(signum)
        elif signum == signal.SIGTERM:
            # A fork of this process, such as a worker of a loader, which ends as it would without us. Ctrl-C, which a
            # terminal sends to all, and SIGUSR1, which SLURM does, are left to the first process: until the end of the
            # step it needs its workers.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    if threading.current_thread() is not threading.main_thread():
        return {}
    # `nohup` has SIGHUP ignored, and means it.
    heard = (one for one in _SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN)
    return {signum: signal.signal(signum, handle) for signum in heard}


def _restore(before: dict[int, Any]) -> None:
    for signum, handler in before.items():
        signal.signal(signum, handler)
