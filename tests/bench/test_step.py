# Shapes: B batch, S sequence, D hidden.
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.bench.step import busiest_over_mean, dense_layer, moe_layer, report, training_step
from pathmoe.bench.tiny import TinyRun
from pathmoe.data import TokenDataModule
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig


def shape(**changes: object) -> PathMoEConfig:
    fields = {
        "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "layers_per_router": 2,
    }  # fmt: skip
    return PathMoEConfig(**fields | changes)


@pytest.fixture
def run(tmp_path: Path) -> TinyRun:
    data = TokenDataModule(
        source="c-functions", num_documents=60, vocab_size=300, sequence_length=16, micro_batch_size=2,
        cache_dir=str(tmp_path),
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    return TinyRun(
        config=shape(), optimizer=OptimizerConfig(name="muon", lr=1e-2), schedule=ScheduleConfig(), max_steps=10,
        gradient_clip_val=1.0, data=data,
    )  # fmt: skip


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


def test_layers_that_are_compared_have_equal_active_flops() -> None:
    model = PathMoEForCausalLM(shape())
    dense = sum(p.numel() for p in dense_layer(model.config).parameters())
    experts = sum(p.numel() for p in model.model.layers[0].mlp.experts.parameters())
    assert dense == experts * model.config.num_experts_per_tok // model.config.num_experts
    x_BSD = torch.randn(2, 3, model.config.hidden_size)
    layer, parameters = moe_layer(model)
    assert layer(x_BSD).shape == x_BSD.shape
    assert sum(p.numel() for p in parameters) == experts + model.config.num_experts * model.config.hidden_size


def test_balance_is_told_from_collapse() -> None:
    uniform, collapsed = (PathMoEForCausalLM(shape(force_uniform_routing=forced)) for forced in (True, False))
    x_BSD = torch.ones(2, 8, 16)
    assert busiest_over_mean(uniform, x_BSD) == 1
    # Equal hidden states choose the same two experts of four.
    assert busiest_over_mean(collapsed, x_BSD) == 2


def test_report_gives_every_figure(run: TinyRun) -> None:
    figures = {line[:56].strip(): [float(x.replace(",", "")) for x in line[56:].split()] for line in report(run, 2)}
    assert len(figures) == 10
    assert figures["tokens per step"] == [32]
    for name, numbers in figures.items():
        assert numbers == sorted(numbers) and numbers[0] > 0, name
    # Pre-activation [N, 2F] alone, which nothing in the layer can do without.
    assert figures["saved for backward beside x, ours, bytes per MoE layer"][0] >= 4 * 2 * 32 * 16


@pytest.mark.parametrize("rounds", ["0", "1"])
def test_too_few_rounds_end_in_one_line(rounds: str) -> None:
    command = [sys.executable, "-m", "pathmoe.bench.step", "--rounds", rounds]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: --rounds ({rounds})") and ended.stderr.count("\n") == 1
