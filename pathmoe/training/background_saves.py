"""Checkpoints that are written while training goes on."""

from collections.abc import Callable
from threading import Thread
from typing import Any

from torch.distributed.checkpoint._state_dict_stager import StateDictStager


class BackgroundSaves:
    """One save at a time in a thread; what goes wrong in it is raised by the next call of either method.

    torch.distributed.checkpoint.async_save is over once the shards are written. What makes a checkpoint whole, its
    checksums and its name, would then wait for the next save, an interval later; here it is part of what the thread
    does.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, content: Any, write: Callable[[Any], None]) -> None:
        """Copy `content` into CPU memory as it is now, and go on while `write` takes the copy to disk.

        It first waits for the save before, so that there is one copy at most.

        Raises:
            BaseException: what that one raised.
        """
        self.wait()
        staged = StateDictStager().stage(content)
        # A daemon, since a program that is to end at once does not wait for a checkpoint.
        self._thread = Thread(target=self._run, args=(staged, write), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return once nothing is being written.

        Raises:
            BaseException: what the last save raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, staged: Any, write: Callable[[Any], None]) -> None:
        try:
            write(staged)
        except BaseException as error:
            self._error = error
