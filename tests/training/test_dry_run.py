"""The dry run: what it prints is what the run would be, and it refuses what the run would be refused for."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathmoe.config import PathMoEConfig
from pathmoe.counts import flops_per_token
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.dry_run import dry_run, dry_run_report
from pathmoe.training.optim import OptimizerConfig, build_optimizer
from pathmoe.training.plan import PlanConfig
from tests.training.conftest import CommandLine

PAGE = Path(__file__).resolve().parents[2] / "docs" / "planning.md"
SHARDED = "pathmoe.training.sharded_strategy.ShardedStrategy"
CONFIG = {"hidden_size": 64, "num_hidden_layers": 4, "layers_per_router": [1, 3], "tie_word_embeddings": True}


def resolved(**changes: Any) -> dict[str, Any]:
    """A configuration as the command line resolves it, changed in places named by key, with __ for a dot."""
    settings: dict[str, Any] = {
        "seed_everything": 0,
        "trainer": {
            "accumulate_grad_batches": 3,
            "max_steps": 10,
            "precision": "32-true",
            "devices": "auto",
            "num_nodes": 1,
            "accelerator": "auto",
            "strategy": "auto",
            "check_val_every_n_epoch": None,
            "val_check_interval": None,
            "limit_train_batches": None,
        },
        "model": {
            "config": dict(CONFIG),
            "optimizer": {"name": "muon"},
            "schedule": {"name": "cosine"},
            "attn_implementation": "sdpa",
        },
        "data": {"sequence_length": 128, "micro_batch_size": 2},
    }
    for key, value in changes.items():
        *path, name = key.split("__")
        place = settings
        for part in path:
            place = place[part]
        place[name] = value
    return settings


def numbers(report: str, name: str) -> list[int]:
    (line,) = [line for line in report.splitlines() if re.match(rf"{name}  ", line)]
    return [int(number.replace(",", "")) for number in re.findall(r"(?<![\w.(])\d[\d,]*(?![\w.])", line)]


def test_it_prints_the_configuration_as_yaml_that_can_be_read_back() -> None:
    settings = resolved()
    printed, _, table = dry_run_report(settings).partition("\n\n")
    assert yaml.safe_load(printed) == settings
    assert max(len(line) for line in table.splitlines()) <= 80


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_parameters_and_bytes_are_those_of_the_built_model(name: str) -> None:
    report = dry_run_report(resolved(model__optimizer={"name": name}))
    model = PathMoEForCausalLM(PathMoEConfig(**CONFIG))
    total = sum(parameter.numel() for parameter in model.parameters())
    routed = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    routers = sum(parameter.numel() for parameter in model.model.routers.parameters())
    assert numbers(report, "parameters") == [total]
    assert numbers(report, "active per token") == [total - routed * 3 // 4]
    assert numbers(report, "routers") == [routers, 2]
    assert numbers(report, "bytes of weights") == [4 * total]
    assert numbers(report, "bytes of gradients") == [4 * total]

    optimizer = build_optimizer(model, OptimizerConfig(name=name))
    for member in optimizer.members:
        trained = sum(p.numel() for group in member.param_groups for p in group["params"])
        assert numbers(report, f"trained by {type(member).__name__}") == [trained]
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    state = sum(t.numel() for kept in optimizer.state.values() for t in kept.values() if t.dim())
    assert numbers(report, "bytes of optimizer state") == [4 * state]


def test_flops_are_those_of_the_counts() -> None:
    flops = flops_per_token(PathMoEConfig(**CONFIG), 128)
    assert numbers(dry_run_report(resolved()), "FLOPs per token") == [flops.forward, flops.training]


@pytest.mark.parametrize(("devices", "ranks"), [(1, 1), (5, 5), ([0, 3], 2)], ids=str)
def test_tokens_of_a_step_are_those_of_all_ranks(devices: Any, ranks: int) -> None:
    report = dry_run_report(resolved(trainer__devices=devices, trainer__num_nodes=2))
    assert numbers(report, "tokens per step")[0] == 2 * ranks * 3 * 2 * 128
    assert numbers(report, "micro-batches a step") == [3, 2]


def test_micro_batches_follow_from_the_global_batch() -> None:
    settings = resolved(trainer__accumulate_grad_batches=1, trainer__devices=4, data__global_batch_size=48)
    report = dry_run_report(settings | {"validate_every_n_steps": 7})
    assert numbers(report, "micro-batches a step") == [6, 2]
    assert numbers(report, "tokens per step") == [48 * 128, 128]
    assert "accumulate_grad_batches: 1\n" in report, "as the run is saved"


STRATEGIES = {
    "ddp": {"trainer__strategy": "ddp"},
    "fsdp2": {"trainer__strategy": {"class_path": SHARDED}, "model__optimizer__name": "adamw"},
    "hybrid": {
        "trainer__strategy": {"class_path": SHARDED, "init_args": {"num_replicas": 2}},
        "model__optimizer__name": "adamw",
    },
    "experts": {
        "trainer__strategy": {"class_path": SHARDED, "init_args": {"expert_parallel_size": 2}},
        "model__optimizer__name": "adamw",
    },
}  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_memory_of_one_gpu_is_that_of_its_parts(strategy: str) -> None:
    report = dry_run_report(resolved(trainer__devices=4, **STRATEGIES[strategy]), PlanConfig(gpu="h100"))
    table = report.partition("memory of one GPU")[2]
    rows = {name: float(value) for name, value in re.findall(r"^  (\S.*?) {2,}(-?[\d.]+)", table, re.MULTILINE)}
    parts = {name: value for name, value in rows.items() if name not in ("all", "reserve", "free")}
    assert {"weights", "gradients", "optimizer state", "activations", "temporaries", "gradients on the way"} <= set(
        parts
    )
    assert ("gathered parameters" in parts) == (strategy != "ddp")
    assert sum(parts.values()) == pytest.approx(rows["all"], abs=0.05)
    assert (rows["reserve"], rows["free"]) == (8.0, pytest.approx(72 - rows["all"], abs=0.02))
    assert "with checkpointing)" in table
    assert max(map(len, table.splitlines())) <= 80


def test_the_time_of_a_run() -> None:
    flops = flops_per_token(PathMoEConfig(**CONFIG), 128).training
    settings = resolved(trainer__devices=4, trainer__precision="bf16-mixed", trainer__max_steps=10**6)
    report = dry_run_report(settings | {"peak_tflops": 100.0}, PlanConfig(gpu="h100", mfu=0.5))
    tokens = 10**6 * 4 * 3 * 2 * 128
    assert numbers(report, "tokens of the run") == [tokens, 10**6]
    seconds = tokens * flops / (4 * 0.5e14)
    assert numbers(report, "tokens per second") == [round(tokens / seconds), round(tokens / seconds / 4)]
    days, hours = re.findall(r"time of the run +([\d,.]+) days, ([\d,]+) GPU-hours", report)[0]
    assert float(days) == pytest.approx(seconds / 86_400, abs=0.05)
    assert int(hours.replace(",", "")) == round(4 * seconds / 3600)


def test_no_time_where_the_rate_is_not_known() -> None:
    assert "tokens per second" not in dry_run_report(resolved())
    report = dry_run_report(resolved(), PlanConfig(gpu="h100"))
    assert "tokens per second" not in report
    assert re.search(r"^time of the run +needs peak_tflops, as that of plan\.gpu is in bf16$", report, re.MULTILINE)


def test_a_run_that_does_not_fit_is_printed_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^plan\.memory_gib \(0\.01\) must have room for .* GiB, most of it "):
        dry_run(resolved(), PlanConfig(memory_gib=0.01))
    assert re.search(r"^  free +-[\d.]+  does not fit$", capsys.readouterr().out, re.MULTILINE)
    dry_run(resolved(), PlanConfig(memory_gib=10.0))


@pytest.mark.parametrize(
    ("short", "full"), [(64, "64-true"), ("32", "32-true"), ("bf16", "bf16-mixed"), (None, "32-true")]
)
def test_a_short_name_of_a_precision_is_that_precision(short: Any, full: str) -> None:
    reports = [dry_run_report(resolved(trainer__precision=precision)) for precision in (short, full)]
    assert numbers(reports[0], "bytes of weights") == numbers(reports[1], "bytes of weights")


def test_half_precision_weights_are_half_as_large() -> None:
    whole = dry_run_report(resolved())
    half = dry_run_report(resolved(trainer__precision="bf16-true"))
    for name in ("bytes of weights", "bytes of gradients", "bytes of optimizer state"):
        assert [2 * number for number in numbers(half, name)] == numbers(whole, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__config__num_experts_per_tok": 17}, r"^model\.config\.num_experts_per_tok \(17\) must be at most"),
        ({"model__optimizer__lr": -1.0}, r"^model\.optimizer\.lr \(-1\.0\) must be above 0"),
        (
            {"model__schedule__warmup_steps": 11},
            r"^model\.schedule\.warmup_steps \(11\) must fit in .*max_steps \(10\)",
        ),
        ({"data__global_batch_size": 7}, r"^data\.global_batch_size \(7\) must equal .* x ranks \(1\) = 6; make it a"),
        (
            {"data__streaming": True},
            r"^data\.tokenizer \(train-bpe\) must be a folder .* with data\.streaming \(true\)",
        ),
        ({"trainer__precision": 16}, r"^trainer\.precision \(16-mixed\) must be one of .*; use bf16-mixed"),
        ({"trainer__val_check_interval": 7}, r"^trainer\.val_check_interval \(7\) must be a multiple of .* \(3\)"),
        ({"trainer__val_check_interval": "00:01:00"}, r"^trainer\.val_check_interval \(00:01:00\) must be a multiple"),
        ({"trainer__limit_train_batches": 0.5}, r"^trainer\.limit_train_batches \(0\.5\) must be a multiple of"),
        ({"trainer__check_val_every_n_epoch": 2}, r"^trainer\.check_val_every_n_epoch \(2\) must be null or 1"),
        (
            {
                "trainer__strategy": {"class_path": SHARDED},
                "trainer__precision": "bf16-true",
                "model__optimizer__name": "adamw",
            },
            r"^trainer\.precision \(bf16-true\) must be 32-true or bf16-mixed under ShardedStrategy",
        ),
        (
            {"trainer__strategy": {"class_path": SHARDED}, "model__optimizer__name": "muon"},
            r"^model\.optimizer\.name \(muon\) must be adamw under ShardedStrategy",
        ),
        (
            {"trainer__strategy": {"class_path": SHARDED, "init_args": {"num_replicas": 3}}},
            r"^trainer\.strategy\.init_args\.num_replicas \(3\) must divide the 1 ranks",
        ),
        ({"trainer__strategy": "fsdp"}, r"^trainer\.strategy \(fsdp\) must be auto, ddp or "),
        (
            {"trainer__strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}},
            r"^trainer\.strategy \(ModelParallelStrategy\) must be auto, ddp or ",
        ),
        ({"model__config__num_experts_per_tok": 1}, r"^model\.config\.norm_topk_prob \(true\) must be false with"),
        ({"model__attn_implementation": "flash_attention_2"}, r"^model\.attn_implementation .* trainer\.precision"),
        (
            {"model__attn_implementation": "flex_attention", "trainer__accelerator": "cpu"},
            r"^model\.attn_implementation \(flex_attention\) must be sdpa or eager to train on a CPU",
        ),
    ],
)
def test_what_the_run_would_be_refused_for(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dry_run_report(resolved(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"trainer__val_check_interval": 6, "trainer__limit_train_batches": 9},
        {"trainer__val_check_interval": 1.0},
        {"trainer__strategy": "ddp_find_unused_parameters_true"},
        {"trainer__strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy"}},
        {"model__attn_implementation": "flash_attention_2", "trainer__precision": "bf16"},
        {"model__attn_implementation": "flex_attention"},
    ],
    ids=str,
)
def test_what_the_run_would_take(change: dict[str, Any]) -> None:
    assert numbers(dry_run_report(resolved(**change)), "parameters")


EXAMPLES = re.findall(
    r"^```console\n\$ python train\.py (.*?[^\\])\n(.*?)\n```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize(("command", "output"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_page_on_planning_shows_what_is_printed(command: str, output: str, command_line: CommandLine) -> None:
    ended = command_line(*shlex.split(command.replace("\\\n", "")))
    assert ended.status == (2 if output.startswith("error: ") else 0)
    assert f"\n{ended.err or ended.out}".endswith(f"\n{output}\n")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == PAGE.read_text().count("```console") > 3
