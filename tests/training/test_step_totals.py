"""What the micro-batches of a step add up to."""

# Shapes: L deciding layers, E experts.

import math

import pytest
import torch

from pathmoe.model import PathMoECausalLMOutput
from pathmoe.training.step_totals import StepTotals


def output(
    cross_entropy: float, aux_loss: float | None = None, z_loss: float | None = None, load: float = 1
) -> PathMoECausalLMOutput:
    load_LE = torch.tensor([[load, 2.0 * load], [0, 3.0 * load]]).long()
    losses = {"cross_entropy": cross_entropy, "aux_loss": aux_loss, "z_loss": z_loss}
    tensors = {name: torch.tensor(loss, requires_grad=True) for name, loss in losses.items() if loss is not None}
    return PathMoECausalLMOutput(**tensors, expert_load=load_LE, balance_load=10 * load_LE)


def test_cross_entropies_add_up_and_routing_losses_are_averaged() -> None:
    totals = StepTotals()
    totals.add(output(1.0, aux_loss=4.0, z_loss=0.25), "")
    totals.add(output(2.5, aux_loss=6.0, z_loss=0.75), "")
    losses = totals.losses()
    assert {name: loss.item() for name, loss in losses.items()} == {"loss": 3.5, "balance_loss": 5.0, "z_loss": 0.5}
    assert not any(loss.requires_grad for loss in losses.values()), "a step's graphs are not kept"


def test_losses_that_the_model_has_not_are_left_out() -> None:
    totals = StepTotals()
    totals.add(output(1.0, z_loss=2.0), "")
    assert {name: loss.item() for name, loss in totals.losses().items()} == {"loss": 1.0, "z_loss": 2.0}


def test_loads_add_up_and_the_balance_load_is_the_last() -> None:
    totals = StepTotals()
    assert totals.balance_load_LE is None
    totals.add(output(1.0, load=1), "")
    totals.add(output(1.0, load=5), "")
    assert totals.load().tolist() == [[6, 12], [0, 18]]
    assert totals.balance_load_LE is not None
    assert totals.balance_load_LE.tolist() == [[50, 100], [0, 150]]


@pytest.mark.parametrize(
    ("losses", "suspects"),
    [
        ([1.0, math.nan, 2.0], [1]),
        ([math.inf, 1.0, math.nan], [0, 2]),
        # Each loss is finite, so the gradient is at fault.
        ([1.0, 2.0, 3.0], [0, 1, 2]),
    ],
)
def test_suspects_are_the_micro_batches_whose_loss_is_not_finite(losses: list[float], suspects: list[int]) -> None:
    totals = StepTotals()
    for number, loss in enumerate(losses):
        totals.add(output(loss), f"blocks [{number}]")
    assert totals.suspects() == [f"rank 0, micro-batch {number}, blocks [{number}]" for number in suspects]
