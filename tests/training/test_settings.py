"""Whose settings hold after a resume: the checkpoint's state, the command line's rates."""

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pathmoe.training.optim import CombinedOptimizer, OptimizerConfig, build_optimizer
from pathmoe.training.schedule import ScheduleConfig, build_scheduler
from pathmoe.training.settings import apply_group_settings, check_groups, group_settings

SCHEDULE = ScheduleConfig(name="cosine", warmup_steps=3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def run(
    model: nn.Module, optimizer: CombinedOptimizer, scheduler: LambdaLR, steps: range
) -> tuple[list[list[float]], list[torch.Tensor]]:
    rates = []
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return rates, [parameter.detach().clone() for parameter in model.parameters()]


def resumed(
    changes: dict[str, Any], max_steps: int = 20, schedule: ScheduleConfig = SCHEDULE
) -> tuple[list[list[float]], list[torch.Tensor]]:
    """Eight steps, a checkpoint, and six more with changed settings."""
    model = network()
    config = {"name": "muon", "lr": 0.01, "muon_lr": 0.02, "weight_decay": 0.1}
    optimizer = build_optimizer(model, OptimizerConfig(**config))
    scheduler = build_scheduler(optimizer, SCHEDULE, 20)
    run(model, optimizer, scheduler, range(8))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    model = network()
    optimizer = build_optimizer(model, OptimizerConfig(**config | changes))
    scheduler = build_scheduler(optimizer, schedule, max_steps)
    settings = group_settings(optimizer)
    model.load_state_dict(saved["model"])
    check_groups(saved["optimizer"]["param_groups"], optimizer)
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["lr"])
    apply_group_settings(optimizer, scheduler, settings)
    return run(model, optimizer, scheduler, range(8, 14))


def test_without_a_change_no_bit_changes() -> None:
    model = network()
    optimizer = build_optimizer(model, OptimizerConfig(name="muon", lr=0.01, muon_lr=0.02, weight_decay=0.1))
    rates, weights = run(model, optimizer, build_scheduler(optimizer, SCHEDULE, 20), range(14))
    resumed_rates, resumed_weights = resumed({})
    assert resumed_rates == rates[8:]
    assert all(torch.equal(*pair) for pair in zip(weights, resumed_weights, strict=True))


def test_new_rates_win_at_the_step_that_the_run_is_at() -> None:
    before, _ = resumed({})
    after, _ = resumed({"lr": 0.03, "muon_lr": 0.01})
    adamw, muon = build_optimizer(network(), OptimizerConfig(name="muon")).members
    factors = [3.0] * len(adamw.param_groups) + [0.5] * len(muon.param_groups)
    for old, new in zip(before, after, strict=True):
        assert new == pytest.approx([factor * rate for factor, rate in zip(factors, old, strict=True)], rel=1e-12)


def test_a_new_schedule_wins() -> None:
    rates, _ = resumed({}, max_steps=40, schedule=ScheduleConfig(name="wsd", warmup_steps=2, decay_fraction=0.1))
    assert {tuple(row) for row in rates} == {(0.01, 0.02)}, "between its warm-up and its decay"


@pytest.mark.parametrize("changes", [{"weight_decay": 0.5}, {"betas": (0.5, 0.6)}, {"muon_momentum": 0.5}])
def test_every_other_setting_wins_too(changes: dict[str, Any]) -> None:
    rates, weights = resumed({})
    changed_rates, changed_weights = resumed(changes)
    assert changed_rates == rates
    assert not all(torch.equal(*pair) for pair in zip(weights, changed_weights, strict=True))


def test_the_state_of_another_optimizer_is_refused() -> None:
    groups = build_optimizer(network(), OptimizerConfig(name="adamw")).state_dict()["param_groups"]
    message = (
        r"^model\.optimizer\.name and model\.config\.router_frozen must be the checkpoint's, .* \(here 4 no_decay \+ "
        r"2 matrices, in the checkpoint 2 decay \+ 4 no_decay\); set them back"
    )
    with pytest.raises(ValueError, match=message):
        check_groups(groups, build_optimizer(network(), OptimizerConfig(name="muon")))


def test_the_state_of_a_model_with_a_frozen_part_is_refused() -> None:
    whole = network()
    groups = build_optimizer(whole, OptimizerConfig()).state_dict()["param_groups"]
    whole[2].requires_grad_(False)
    with pytest.raises(ValueError, match=r"here 1 decay \+ 3 no_decay, in the checkpoint 2 decay \+ 4 no_decay"):
        check_groups(groups, build_optimizer(whole, OptimizerConfig()))
