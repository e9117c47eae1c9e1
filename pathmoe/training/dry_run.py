"""What a run would be, without running it: configuration, parameters, FLOPs, tokens and bytes."""

from collections.abc import Mapping
from typing import Any

import torch
import yaml

from pathmoe.config import PathMoEConfig
from pathmoe.counts import flops_per_token, parameter_counts, training_bytes
from pathmoe.data import TokenDataModule
from pathmoe.data.order import BatchGeometry
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.micro_batches import settled_trainer_settings
from pathmoe.training.model_requirements import check_attention_runs, check_routers_learn
from pathmoe.training.optim import OptimizerConfig, parameters_per_optimizer
from pathmoe.training.schedule import ScheduleConfig, check_schedule
from pathmoe.training.trainer_requirements import check_optimizer, check_trainer_settings, full_precision, strategy_name


def dry_run_report(resolved: Mapping[str, Any]) -> str:
    """The resolved configuration as YAML, and what follows from it, as text of at most 80 columns where it can.

    Args:
        resolved: configuration after all files and flags, plain types.

    Raises:
        ValueError: what a run with these settings would be refused for, as far as it shows without data and devices.
    """
    config = PathMoEConfig(**resolved["model"]["config"])
    optimizer = OptimizerConfig(**resolved["model"]["optimizer"])
    with torch.device("meta"):
        model = PathMoEForCausalLM(config)
    data = TokenDataModule(**resolved["data"], vocab_size=config.vocab_size)
    world_size, every_n_steps = _world_size(resolved["trainer"]), resolved.get("validate_every_n_steps")
    trainer = settled_trainer_settings(
        resolved["trainer"], data.micro_batch_size, data.global_batch_size, world_size, every_n_steps
    )
    geometry = BatchGeometry(
        micro_batch_size=data.micro_batch_size,
        accumulate_grad_batches=trainer["accumulate_grad_batches"],
        world_size=world_size,
    )
    data.check_global_batch(geometry)
    check_trainer_settings(trainer)
    check_optimizer(strategy_name(resolved["trainer"]), optimizer.name)
    check_routers_learn(config)
    precision = full_precision(resolved["trainer"]["precision"])
    accelerator = resolved["trainer"]["accelerator"]
    check_attention_runs(resolved["model"]["attn_implementation"], precision, accelerator, training=True)
    check_schedule(ScheduleConfig(**resolved["model"]["schedule"]), resolved["trainer"]["max_steps"])
    counts = parameter_counts(config)
    length = resolved["data"]["sequence_length"]
    flops = flops_per_token(config, length)
    blocks = geometry.global_batch_size
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    memory = training_bytes(config, optimizer.name, weight_dtype=dtype, state_dtype=dtype)
    rows = [
        ("parameters", f"{counts.total:,} ({_short(counts.total)})"),
        ("active per token", f"{counts.active:,} ({_short(counts.active)})"),
        ("routers", f"{counts.routers:,} in {config.sharing.num_routers} routers"),
        *((f"trained by {name}", f"{number:,}") for name, number in parameters_per_optimizer(model, optimizer).items()),
        ("FLOPs per token", f"{flops.forward:,} forward, {flops.training:,} training"),
        ("tokens per step", f"{blocks * length:,} ({blocks} blocks of {length})"),
        ("bytes of weights", _size(memory.weights)),
        ("bytes of gradients", _size(memory.gradients)),
        ("bytes of optimizer state", _size(memory.optimizer_state)),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
    return f"{yaml.safe_dump(dict(resolved), sort_keys=False)}\n{table}"


def _world_size(trainer: Mapping[str, Any]) -> int:
    """Ranks that the settings ask for; one a node where the machine decides."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        devices = len(devices)
    return trainer["num_nodes"] * (int(devices) if str(devices).isdigit() else 1)


def _short(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 5e8 else f"{number / 1e6:.2f}M"


def _size(number: int) -> str:
    return f"{number:,} ({number / 2**30:.2f} GiB)" if number >= 2**30 else f"{number:,} ({number / 2**20:.2f} MiB)"
