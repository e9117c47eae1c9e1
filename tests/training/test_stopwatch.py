"""Stretches of time, on a clock that the test moves and on events of a GPU where there is one."""

import time

import pytest
import torch

from pathmoe.training.stopwatch import Stopwatch


def test_stretches_add_up_until_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch(torch.device("cpu"))
    assert watch.take() == 0
    for seconds in (2.0, 3.0):
        watch.start()
        now += seconds
        watch.stop()
        now += 100
    assert watch.take() == 5
    watch.start()
    now += 7
    watch.stop()
    assert watch.take() == 7
    assert watch.take() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_a_stretch_lasts_until_the_device_is_through_and_the_host_does_not_wait() -> None:
    watch = Stopwatch(torch.device("cuda"))
    x = torch.ones(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(3):
        watch.start()
        for _ in range(20):
            x = x @ x
        watch.stop()
    at_once = watch.take()
    torch.cuda.synchronize()
    # Hundreds of products of 1.1 TFLOP take any GPU of today a while, and the host no time to ask for.
    assert at_once < watch.take()
