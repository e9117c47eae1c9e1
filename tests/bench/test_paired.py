import pytest

from pathmoe.bench.paired import paired_seconds, ratio


def test_candidates_take_turns_in_alternating_order_and_warmup_is_not_counted() -> None:
    calls: list[str] = []
    candidates = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = paired_seconds(candidates, rounds=3, warmup=1)
    assert "".join(calls) == "abbaabba"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    assert all(second >= 0 for times in seconds.values() for second in times)


def test_ratio_is_taken_round_by_round() -> None:
    # The machine halves its speed in the middle: the ratios do not notice.
    seconds = {"fast": [1.0, 1.0, 2.0, 2.0, 2.0], "slow": [3.0, 3.0, 6.0, 6.0, 6.0]}
    assert ratio(seconds, "slow", "fast") == pytest.approx((3.0, 3.0, 3.0))
