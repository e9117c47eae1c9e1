"""Jobs in processes of their own, which end with the process that started them, however it ends."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def run_jobs(function: Callable[[_Job], _Result], jobs: Sequence[_Job], num_workers: int) -> Iterator[_Result]:
    """Results in the order in which jobs end; in this process, one after the other, for one worker.

    Raises ValueError with what a job said, or where a worker was killed.
    """
    if num_workers == 1 or len(jobs) <= 1:
        yield from map(function, jobs)
        return
    # What the tokenizer's threads and the trainer's leave behind does not survive a fork; the server has neither.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(num_workers, len(jobs)), context, _begin) as pool, _ended_by_errors():
        try:
            for future in as_completed([pool.submit(function, job) for job in jobs]):
                yield future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"--num_workers ({num_workers}): one of them was killed, perhaps for want of memory; lower it: "
                "what is finished is kept"
            ) from error
        except ValueError as error:
            raise ValueError(str(error)) from error


@contextmanager
def _ended_by_errors() -> Iterator[None]:
    """Whatever ends what is within, a signal too, does not wait for the workers that were started there."""
    others = multiprocessing.active_children()
    try:
        yield
    except BaseException:
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.terminate()
        raise


def _begin() -> None:
    """One thread for the tokenizer, Ctrl-C left to the process that started this one, and an end when that is gone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
