"""The table of GPUs beside Lightning's, and in an order that makes sense."""

import pytest
import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS

from pathmoe.training.gpus import GPUS


@pytest.mark.parametrize(("ours", "theirs"), [("a100-40", "a100"), ("a100-80", "a100"), ("h100", "h100 sxm")])
def test_rates_are_lightnings(ours: str, theirs: str) -> None:
    # Of the H200 it has the figure with sparsity.
    assert GPUS[ours].peak_tflops * 1e12 == _CUDA_FLOPS[theirs][torch.bfloat16]


def test_the_h200_is_an_h100_with_more_memory() -> None:
    assert GPUS["h200"].peak_tflops == GPUS["h100"].peak_tflops
    assert GPUS["h200"].memory_gib > GPUS["h100"].memory_gib
