# Shapes: B batch, S sequence.
import subprocess
import sys

import pytest
import torch

from pathmoe import PathMoEForCausalLM
from pathmoe.bench.layer import layer_shape
from pathmoe.bench.step import report, training_step
from pathmoe.bench.tiny import TinyRun


def test_step_lowers_the_loss_and_leaves_no_gradient(run: TinyRun) -> None:
    torch.manual_seed(0)
    model = PathMoEForCausalLM(run.config)
    tokens_BS = torch.randint(0, 300, (2, 12))
    inputs = {"input_ids": tokens_BS, "labels": tokens_BS}
    before = model(**inputs).loss.item()
    step = training_step(model, inputs, run)
    for _ in range(30):
        step()
    assert model(**inputs).loss.item() < before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_report_gives_every_figure(run: TinyRun) -> None:
    lines = report(run, 2, {"another": layer_shape(32, 16, 8, 4, 2)})
    blank = lines.index("")
    figures = {line[:56].strip(): [float(x.replace(",", "")) for x in line[56:].split()] for line in lines[:blank]}
    assert figures["tokens per step"] == [32]
    shares = {name: numbers[0] for name, numbers in figures.items() if name.startswith("share of ours")}
    assert len(shares) == 4
    assert sum(shares.values()) == pytest.approx(1, abs=0.02)
    assert [line for line in lines if line.startswith("an MoE layer")] == [
        "an MoE layer, the tiny run's shape: T=32 D=16 F=8 E=4 K=2",
        "an MoE layer, another shape: T=32 D=16 F=8 E=4 K=2",
    ]
    layer = {line[:56].strip(): [float(x) for x in line[56:].split()] for line in lines[blank + 2 : blank + 7]}
    assert len(layer) == 5
    assert all(numbers == sorted(numbers) and numbers[0] > 0 for numbers in layer.values())


@pytest.mark.parametrize("rounds", ["0", "1"])
def test_too_few_rounds_end_in_one_line(rounds: str) -> None:
    command = [sys.executable, "-m", "pathmoe.bench.step", "--rounds", rounds]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: --rounds ({rounds})") and ended.stderr.count("\n") == 1
