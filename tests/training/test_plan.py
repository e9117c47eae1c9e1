"""The GPU of a plan, and the time that a run takes on it."""

from typing import Any

import pytest

from pathmoe.training.gpus import GPUS
from pathmoe.training.plan import GIB, RESERVE, PlanConfig, duration


def test_a_listed_gpu() -> None:
    plan = PlanConfig(gpu="h100")
    assert plan.bytes == 80 * GIB
    assert plan.reserve == int(RESERVE * 80 * GIB)
    assert plan.peak_flops_per_second("bf16-mixed") == plan.peak_flops_per_second("bf16-true") == 989.4e12
    assert plan.peak_flops_per_second("32-true") is None, "which is another rate"


def test_numbers_win_over_the_list() -> None:
    assert PlanConfig(gpu="h100", memory_gib=64).bytes == 64 * GIB
    assert PlanConfig(memory_gib=64).peak_flops_per_second("bf16-mixed") is None


def test_no_gpu() -> None:
    plan = PlanConfig()
    assert (plan.bytes, plan.reserve, plan.peak_flops_per_second("bf16-mixed")) == (None, 0, None)


def test_time_is_that_of_the_flops() -> None:
    run = duration(tokens=10**12, flops_per_token=6 * 10**9, num_gpus=64, peak_flops_per_second=1e15, mfu=0.25)
    assert run.seconds * 64 * 1e15 * 0.25 == pytest.approx(10**12 * 6 * 10**9)
    assert run.tokens_per_second * run.seconds == pytest.approx(10**12)
    assert run.days == run.seconds / 86_400


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"gpu": "h1000"},
            rf"^plan\.gpu \(h1000\) must be one of {', '.join(GPUS)}; of others set plan\.memory_gib and ",
        ),
        ({"memory_gib": 0}, r"^plan\.memory_gib \(0\) must be above 0; raise it$"),
        ({"mfu": 0}, r"^plan\.mfu \(0\) must be above 0 and at most 1; set a share such as 0\.4$"),
        ({"mfu": 40}, r"^plan\.mfu \(40\) must be above 0 and at most 1; set a share such as 0\.4$"),
    ],
    ids=str,
)
def test_what_is_no_plan(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlanConfig(**fields)
