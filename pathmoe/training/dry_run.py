"""What a run would be, without running it: configuration, parameters, FLOPs, memory of a GPU, and time."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import yaml

from pathmoe.config import PathMoEConfig
from pathmoe.counts import flops_per_token, parameter_counts, training_bytes
from pathmoe.data import TokenDataModule
from pathmoe.data.order import BatchGeometry
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.fitting import check_fits
from pathmoe.training.gpu_memory import TrainingShape, gpu_memory
from pathmoe.training.gpus import check_peak_tflops
from pathmoe.training.micro_batches import settled_trainer_settings
from pathmoe.training.model_requirements import (
    check_attention_runs,
    check_experts_can_be_shared,
    check_routers_learn,
)
from pathmoe.training.optim import OptimizerConfig, parameters_per_optimizer
from pathmoe.training.plan import GIB, RESERVE, PlanConfig, duration
from pathmoe.training.schedule import ScheduleConfig, check_schedule
from pathmoe.training.trainer_requirements import check_optimizer, check_trainer_settings, full_precision
from pathmoe.training.trainer_settings import layout_of, strategy_name

Rows = list[tuple[str, str]]


def dry_run(resolved: Mapping[str, Any], plan: PlanConfig) -> None:
    """Print the report, then refuse a run that does not fit the GPU that was named.

    Args:
        resolved: configuration after all files and flags, plain types.
        plan: that GPU.

    Raises:
        ValueError: as `dry_run_report` and `check_fits`.
    """
    print(dry_run_report(resolved, plan))
    shape, geometry = _shape_and_geometry(resolved)
    check_fits(shape, plan, geometry.global_batch_size)


def dry_run_report(resolved: Mapping[str, Any], plan: PlanConfig = PlanConfig()) -> str:  # noqa: B008  # frozen
    """The resolved configuration as YAML, and what follows from it, as text of at most 80 columns where it can.

    Args:
        resolved: configuration after all files and flags, plain types.
        plan: the GPU that the run is for.

    Raises:
        ValueError: what a run with these settings would be refused for, as far as it shows without data and devices.
    """
    shape, geometry = _shape_and_geometry(resolved)
    rows = [
        *_model_rows(shape),
        *_batch_rows(shape, geometry),
        *_memory_rows(shape, plan),
        *_time_rows(shape, geometry, resolved["trainer"]["max_steps"], plan, resolved.get("peak_tflops")),
    ]
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)
    return f"{yaml.safe_dump(dict(resolved), sort_keys=False)}\n{table}"


def _shape_and_geometry(resolved: Mapping[str, Any]) -> tuple[TrainingShape, BatchGeometry]:
    """What the run is made of, after all that a run is refused for."""
    config = PathMoEConfig(**resolved["model"]["config"])
    layout = layout_of(resolved["trainer"])
    data = TokenDataModule(**resolved["data"], vocab_size=config.vocab_size)
    trainer = settled_trainer_settings(
        resolved["trainer"], data.micro_batch_size, data.global_batch_size, layout.world_size,
        resolved.get("validate_every_n_steps"),
    )  # fmt: skip
    geometry = BatchGeometry(
        micro_batch_size=data.micro_batch_size,
        accumulate_grad_batches=trainer["accumulate_grad_batches"],
        world_size=layout.world_size,
    )
    data.check_global_batch(geometry)
    shape = TrainingShape(
        config=config,
        optimizer=OptimizerConfig(**resolved["model"]["optimizer"]),
        layout=layout,
        precision=full_precision(trainer["precision"]),
        attention=resolved["model"]["attn_implementation"],
        micro_batch_size=data.micro_batch_size,
        sequence_length=resolved["data"]["sequence_length"],
        checkpointing=resolved["model"].get("activation_checkpointing", False),
    )
    check_trainer_settings(trainer)
    check_optimizer(strategy_name(trainer), shape.optimizer.name)
    check_routers_learn(config)
    if layout.expert_parallel_size > 1:
        implementation = resolved["model"].get("experts_implementation", "pathmoe")
        check_experts_can_be_shared(config, implementation, layout.expert_parallel_size, layout.expert_shards)
    check_attention_runs(shape.attention, shape.precision, trainer["accelerator"], training=True)
    check_schedule(ScheduleConfig(**resolved["model"]["schedule"]), trainer["max_steps"])
    return shape, geometry


def _model_rows(shape: TrainingShape) -> Rows:
    config = shape.config
    with torch.device("meta"):
        per_optimizer = parameters_per_optimizer(PathMoEForCausalLM(config), shape.optimizer)
    counts, flops = parameter_counts(config), flops_per_token(config, shape.sequence_length)
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(shape.precision, torch.float32)
    memory = training_bytes(config, shape.optimizer.name, weight_dtype=dtype, state_dtype=dtype)
    return [
        ("parameters", f"{counts.total:,} ({_short(counts.total)})"),
        ("active per token", f"{counts.active:,} ({_short(counts.active)})"),
        ("routers", f"{counts.routers:,} in {config.sharing.num_routers} routers"),
        *((f"trained by {name}", f"{number:,}") for name, number in per_optimizer.items()),
        ("FLOPs per token", f"{flops.forward:,} forward, {flops.training:,} training"),
        ("bytes of weights", _size(memory.weights)),
        ("bytes of gradients", _size(memory.gradients)),
        ("bytes of optimizer state", _size(memory.optimizer_state)),
    ]


def _batch_rows(shape: TrainingShape, geometry: BatchGeometry) -> Rows:
    blocks, length = geometry.global_batch_size, shape.sequence_length
    return [
        ("", ""),
        ("ranks", f"{geometry.world_size}: {shape.layout}"),
        ("tokens per step", f"{blocks * length:,} ({blocks} blocks of {length})"),
        ("micro-batches a step", f"{geometry.accumulate_grad_batches} of {geometry.micro_batch_size} blocks a rank"),
    ]


def _memory_rows(shape: TrainingShape, plan: PlanConfig) -> Rows:
    need, otherwise = gpu_memory(shape), gpu_memory(replace(shape, checkpointing=not shape.checkpointing))
    words = "without" if shape.checkpointing else "with"
    remarks = {"activations": f"  ({otherwise.activations / GIB:.2f} {words} checkpointing)"}
    parts = [(f"  {part}", _gib(number) + remarks.get(part, "")) for part, number in need.parts.items()]
    rows = [("", ""), ("memory of one GPU", f"{'GiB':>8}"), *parts, ("  all", _gib(need.total))]
    if plan.bytes is not None:
        free = plan.bytes - plan.reserve - need.total
        rows += [
            ("  reserve", f"{_gib(plan.reserve)}  ({RESERVE:.0%}: CUDA, NCCL, fragmentation)"),
            ("  free", f"{_gib(free)}  of {plan.bytes / GIB:.0f} GiB" if free >= 0 else f"{_gib(free)}  does not fit"),
        ]
    return rows


def _time_rows(
    shape: TrainingShape, geometry: BatchGeometry, steps: int, plan: PlanConfig, peak_tflops: float | None
) -> Rows:
    """Time of the whole run; none where no rate is known, or steps do not bound the run."""
    check_peak_tflops(peak_tflops)
    peak = peak_tflops * 1e12 if peak_tflops else plan.peak_flops_per_second(shape.precision)
    if peak is None or steps < 1:
        unknown = plan.gpu is not None and peak is None
        return [("time of the run", "needs peak_tflops, as that of plan.gpu is in bf16")] if unknown else []
    num_gpus, tokens = geometry.world_size, steps * geometry.global_batch_size * shape.sequence_length
    training = flops_per_token(shape.config, shape.sequence_length).training
    run = duration(tokens, training, num_gpus, peak, plan.mfu)
    per_gpu = run.tokens_per_second / num_gpus
    return [
        ("", ""),
        ("tokens of the run", f"{tokens:,} in {steps:,} steps"),
        ("FLOPs of the run", f"{tokens * training:.3g}"),
        ("rate of one GPU", f"{plan.mfu * peak / 1e12:.0f} TFLOP/s ({plan.mfu:.0%} of {peak / 1e12:,.0f})"),
        ("tokens per second", f"{run.tokens_per_second:,.0f}, {per_gpu:,.0f} on each GPU"),
        ("time of the run", f"{run.days:,.1f} days, {run.days * 24 * num_gpus:,.0f} GPU-hours"),
    ]


def _short(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 5e8 else f"{number / 1e6:.2f}M"


def _size(number: int) -> str:
    return f"{number:,} ({number / 2**30:.2f} GiB)" if number >= 2**30 else f"{number:,} ({number / 2**20:.2f} MiB)"


def _gib(number: int) -> str:
    return f"{number / GIB:8.2f}"
