from collections.abc import Callable

import pytest
import torch

from pathmoe.bench.paired import cuda_timer, paired_seconds, quartiles, ratio


def test_candidates_take_turns_in_alternating_order_and_warmup_is_not_counted() -> None:
    calls: list[str] = []
    candidates = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = paired_seconds(candidates, rounds=3, warmup=1)
    assert "".join(calls) == "abbaabba"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(second >= 0 for times in seconds.values() for second in times)


def test_seconds_are_those_of_the_timer() -> None:
    times = {"a": [9.0, 1.0, 2.0], "b": [9.0, 3.0, 4.0]}
    called: list[str] = []

    def seconds_of(call: Callable[[], object]) -> float:
        call()
        return times[called[-1]].pop(0)

    candidates = {name: lambda name=name: called.append(name) for name in times}
    assert paired_seconds(candidates, 2, warmup=1, seconds_of=seconds_of) == {"a": [1.0, 2.0], "b": [3.0, 4.0]}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_call_is_run_once_and_its_seconds_are_positive() -> None:
    counts = torch.zeros(1, device="cuda")
    seconds = cuda_timer(flushed_bytes=1 << 20)(lambda: counts.add_(1))
    assert counts.item() == 1
    assert 0 < seconds < 60


def test_quartiles_of_three_values_are_these_values() -> None:
    assert quartiles([3.0, 1.0, 2.0]) == (1.0, 2.0, 3.0)


def test_ratio_is_taken_round_by_round() -> None:
    # The machine halves its speed in the middle: the ratios do not notice.
    seconds = {"fast": [1.0, 1.0, 2.0, 2.0, 2.0], "slow": [3.0, 3.0, 6.0, 6.0, 6.0]}
    assert ratio(seconds, "slow", "fast") == pytest.approx((3.0, 3.0, 3.0))
