"""The schedule in closed form, its shape by property, and the cosine against torch's own."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR

from pathmoe.training.schedule import ScheduleConfig, build_scheduler, decay_steps, lr_factor


def sgd(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


@st.composite
def runs(draw: st.DrawFn, name: str | None = None) -> tuple[ScheduleConfig, int]:
    max_steps = draw(st.integers(1, 300))
    decay_fraction = draw(st.floats(0, 1))
    name = name or draw(st.sampled_from(["cosine", "wsd", "constant"]))
    room = max_steps - (round(decay_fraction * max_steps) if name == "wsd" else 0)
    warmup_steps = draw(st.integers(0, room))
    ratio = draw(st.floats(0, 1))
    return (
        ScheduleConfig(name=name, warmup_steps=warmup_steps, decay_fraction=decay_fraction, min_lr_ratio=ratio),
        max_steps,
    )


@given(runs())
def test_rises_to_one_stays_then_falls_to_the_minimum(run: tuple[ScheduleConfig, int]) -> None:
    config, max_steps = run
    factors = [lr_factor(step, max_steps, config) for step in range(max_steps + 3)]
    start_of_decay = max_steps - decay_steps(max_steps, config)
    rising = factors[: config.warmup_steps + 1]
    assert rising == sorted(rising)
    assert rising[0] > 0
    assert factors[config.warmup_steps : start_of_decay + 1] == [1.0] * (start_of_decay + 1 - config.warmup_steps)
    assert factors[start_of_decay:] == sorted(factors[start_of_decay:], reverse=True)
    if start_of_decay < max_steps:
        assert factors[max_steps:] == pytest.approx([config.min_lr_ratio] * 3)
    build_scheduler(sgd(0.1), config, max_steps)


@given(runs())
def test_no_jump_is_larger_than_the_curve_allows(run: tuple[ScheduleConfig, int]) -> None:
    config, max_steps = run
    decay = decay_steps(max_steps, config)
    # The steepest step of each curve: a cosine's slope is at most pi/2, 1 - sqrt falls most in its first step.
    steepest = {"cosine": math.pi / 2 / decay if decay else 0, "wsd": decay**-0.5 if decay else 0, "constant": 0}
    bound = max(1 / (config.warmup_steps + 1), (1 - config.min_lr_ratio) * steepest[config.name])
    for step in range(max_steps + 2):
        jump = abs(lr_factor(step + 1, max_steps, config) - lr_factor(step, max_steps, config))
        assert jump <= bound + 1e-9


@given(runs(name="cosine"))
def test_cosine_is_torch_cosine_after_warm_up(run: tuple[ScheduleConfig, int]) -> None:
    config, max_steps = run
    decay = max_steps - config.warmup_steps
    peak = 0.3
    optimizer = sgd(peak)
    theirs = CosineAnnealingLR(optimizer, T_max=max(1, decay), eta_min=config.min_lr_ratio * peak)
    for step in range(config.warmup_steps, max_steps + 1):
        assert peak * lr_factor(step, max_steps, config) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimizer.step()
        theirs.step()


def test_wsd_in_closed_form() -> None:
    config = ScheduleConfig(name="wsd", warmup_steps=4, decay_fraction=0.4, min_lr_ratio=0.0)
    factors = [lr_factor(step, 40, config) for step in range(41)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert factors[24:41] == pytest.approx([1 - (step / 16) ** 0.5 for step in range(17)])
    assert factors[28] == pytest.approx(0.5)


def test_scheduler_scales_every_group_by_its_own_rate_and_resumes() -> None:
    config = ScheduleConfig(name="wsd", warmup_steps=3, decay_fraction=0.5)
    optimizer = sgd(0.1, 2.0)
    scheduler = build_scheduler(optimizer, config, 10)
    for step in range(12):
        factor = lr_factor(step, 10, config)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, 2.0 * factor])
        if step == 6:
            resumed = build_scheduler(sgd(0.1, 2.0), config, 10)
            resumed.load_state_dict(scheduler.state_dict())
        optimizer.step()
        scheduler.step()
        if step == 6:
            resumed.optimizer.step()
            resumed.step()
            assert resumed.get_last_lr() == scheduler.get_last_lr()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "linear"}, r"model\.schedule\.name \(linear\) must be cosine, wsd or constant"),
        ({"warmup_steps": -1}, r"model\.schedule\.warmup_steps \(-1\) must be at least 0"),
        ({"decay_fraction": 1.5}, r"model\.schedule\.decay_fraction \(1\.5\) must be from 0 to 1"),
        ({"min_lr_ratio": math.nan}, r"model\.schedule\.min_lr_ratio \(nan\) must be from 0 to 1"),
    ],
)
def test_refuses_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**values)


@pytest.mark.parametrize(
    ("config", "max_steps", "message"),
    [
        (ScheduleConfig(), -1, r"trainer\.max_steps \(-1\) must be at least 1"),
        (
            ScheduleConfig(warmup_steps=11),
            10,
            r"model\.schedule\.warmup_steps \(11\) must fit in trainer\.max_steps \(10\)",
        ),
        (
            ScheduleConfig(name="wsd", warmup_steps=9, decay_fraction=0.2),
            10,
            r"model\.schedule\.warmup_steps \(9\) and the 2 steps of model\.schedule\.decay_fraction \(0\.2\) "
            r"must fit in trainer\.max_steps \(10\)",
        ),
    ],
)
def test_refuses_a_run_too_short_for_its_schedule(config: ScheduleConfig, max_steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_scheduler(sgd(0.1), config, max_steps)
