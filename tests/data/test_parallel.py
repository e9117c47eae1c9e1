"""Jobs are functions of the standard library, which workers find wherever they are."""

import math
import os
import signal
import sys

import pytest

from pathmoe.data.parallel import run_jobs


def test_one_worker_is_this_process() -> None:
    assert list(run_jobs(lambda number: (number, os.getpid()), [3, 1, 2], 1)) == [(n, os.getpid()) for n in (3, 1, 2)]


def test_every_job_has_its_result() -> None:
    assert sorted(run_jobs(math.factorial, range(6), 2)) == [1, 1, 2, 6, 24, 120]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_worker_is_a_process_of_its_own() -> None:
    assert str(os.getpid()) not in run_jobs(os.readlink, ["/proc/self"] * 4, 2)


def test_what_a_job_refuses_is_refused_in_its_words() -> None:
    with pytest.raises(ValueError, match=r"^math domain error$"):
        list(run_jobs(math.sqrt, [1.0, -1.0], 2))


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(ValueError, match=r"^--num_workers \(2\): one of them was killed, perhaps for want of memory"):
        list(run_jobs(signal.raise_signal, [signal.SIGKILL, signal.SIGKILL], 2))
