"""A study as runs: the resolved configuration of each variant, its size and steps, and the command of each run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathmoe.training.dry_run import dry_run_report
from pathmoe.training.micro_batches import micro_batches_per_step
from pathmoe.training.resolution import resolved_fit
from pathmoe.training.trainer_settings import world_size_of
from pathmoe_eval.studies.matching import MODEL_CONFIG, Sizes, check_match, matched_value, sizes_of
from pathmoe_eval.studies.study import Quantity, Study

PLACES = ("cache_dir", "num_workers")
"""Settings of the data that say where and how it is read, and not what."""

_CLOSING = "pathmoe_eval.closing.ClosingReport"


@dataclass(frozen=True, kw_only=True)
class PlannedVariant:
    """A variant, ready to be trained with any seed."""

    name: str
    arguments: tuple[str, ...]
    """Of `fit`, without seed and folder."""
    resolved: dict[str, Any]
    """The configuration that they give, but for the seed."""
    sizes: Sizes
    tokens_per_step: int
    matched: str = ""
    """What was chosen to match another's size, such as `model.config.router_dim 256`."""

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return int(self.resolved["trainer"]["max_steps"])


def plan_variants(study: Study) -> list[PlannedVariant]:
    """Every variant of a study, checked as `fit --dry_run` checks a run.

    Raises:
        ValueError: what a run would be refused for, with the variant's name; data that differ between variants; sizes
            that do not match.
    """
    resolved = {name: _resolve(study, name) for name in study.variants}
    if not study.allow_other_data:
        _refuse_other_data(study, resolved)
    chosen = _matched_values(study, resolved)
    planned = [_plan(study, name, resolved[name], chosen.get(name, {})) for name in study.variants]
    if study.match is not None:
        check_match(study.match, {variant.name: variant.sizes for variant in planned})
    return planned


def _arguments(study: Study, name: str) -> list[str]:
    variant = study.variants[name]
    configs = [f"--config={file}" for file in (*study.base, *variant.configs)]
    return [*configs, *_flags(study.overrides | variant.overrides)]


def _flags(settings: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def _resolve(study: Study, name: str) -> dict[str, Any]:
    try:
        resolved = resolved_fit(_arguments(study, name))
    except ValueError as error:
        raise ValueError(f"variants.{name}: {error}") from error
    callbacks = resolved["trainer"]["callbacks"] or []
    if not any(one["class_path"] == _CLOSING for one in callbacks):
        raise ValueError(
            f"variants.{name}: trainer.callbacks must have {_CLOSING}, whose summary a study reads; add it as "
            "configs/tiny.yaml does"
        )
    return resolved


def _data_of(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the batches of a run, but for the seed, by dotted key."""
    data = {f"data.{key}": value for key, value in resolved["data"].items() if key not in PLACES}
    read = {f"trainer.{key}": resolved["trainer"].get(key) for key in ("limit_train_batches", "overfit_batches")}
    vocabulary = {"model.config.vocab_size": resolved["model"]["config"]["vocab_size"]}
    return {**data, **read, **vocabulary, "tokens of a step": _tokens_per_step(resolved)}


def _refuse_other_data(study: Study, resolved: Mapping[str, Mapping[str, Any]]) -> None:
    wanted = _data_of(resolved[study.baseline])
    for name in study.variants:
        for key, value in _data_of(resolved[name]).items():
            if value != wanted[key]:
                raise ValueError(
                    f"variants.{name}: {key} ({value}) must be that of {study.baseline} ({wanted[key]}), since runs "
                    "are compared on the same data in the same order; take it out, or set allow_other_data: true"
                )


def _tokens_per_step(resolved: Mapping[str, Any]) -> int:
    data, trainer = resolved["data"], resolved["trainer"]
    ranks = world_size_of(trainer)
    micro_batches = micro_batches_per_step(
        trainer["accumulate_grad_batches"], data["micro_batch_size"], data["global_batch_size"], ranks
    )
    return int(micro_batches * ranks * data["micro_batch_size"] * data["sequence_length"])


def _matched_values(study: Study, resolved: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The setting that each variant gives way by, with its value."""
    if study.match is None:
        return {}
    quantity, to = study.match.quantity, resolved[study.match.to]
    target = sizes_of(to["model"]["config"], to["data"]["sequence_length"]).of(quantity)
    chosen = {}
    for name, key in study.match.by.items():
        of_one = resolved[name]
        length = of_one["data"]["sequence_length"]
        try:
            chosen[name] = {key: matched_value(of_one["model"]["config"], key, quantity, target, length)}
        except ValueError as error:
            raise ValueError(f"variants.{name}: {error}") from error
    return chosen


def _plan(study: Study, name: str, resolved: Mapping[str, Any], chosen: Mapping[str, int]) -> PlannedVariant:
    tokens_per_step = _tokens_per_step(resolved)
    steps = math.ceil(study.tokens / tokens_per_step)
    config = resolved["model"]["config"] | {key.removeprefix(MODEL_CONFIG): value for key, value in chosen.items()}
    final = {
        **resolved,
        "model": resolved["model"] | {"config": config},
        "trainer": resolved["trainer"] | {"max_steps": steps},
    }
    try:
        dry_run_report(final)
    except ValueError as error:
        raise ValueError(f"variants.{name}: {error}") from error
    return PlannedVariant(
        name=name,
        arguments=(*_arguments(study, name), *_flags(chosen), f"--trainer.max_steps={steps}"),
        resolved=final,
        sizes=sizes_of(config, resolved["data"]["sequence_length"]),
        tokens_per_step=tokens_per_step,
        matched=", ".join(f"{key} {value}" for key, value in chosen.items()),
    )


def plan_lines(study: Study, variants: list[PlannedVariant]) -> list[str]:
    """What is about to be trained, in lines for people: the size of each variant, and how it differs."""
    to = study.match.to if study.match is not None else study.baseline
    quantity: Quantity = study.match.quantity if study.match is not None else "parameters"
    target = next(one.sizes.of(quantity) for one in variants if one.name == to)
    width = max(len(one.name) for one in variants)
    lines = [
        f"{study.name}: {len(variants)} variants x {len(study.seeds)} seeds, {_steps(variants)}",
        f"{'':<{width}}  {'parameters':>15}  {'active':>15}  {'routers':>11}  {'FLOPs a token':>15}  "
        f"{quantity.replace('_', ' ')} less those of {to}",
    ]
    for one in variants:
        sizes, left = one.sizes, one.sizes.of(quantity) - target
        matched = f", with {one.matched}" if one.matched else ""
        lines.append(
            f"{one.name:<{width}}  {sizes.parameters:>15,}  {sizes.active_parameters:>15,}  "
            f"{sizes.router_parameters:>11,}  {sizes.flops:>15,}  {left:+,} ({left / target:+.3%}){matched}"
        )
    return lines


def _steps(variants: Sequence[PlannedVariant]) -> str:
    """Steps and their tokens; of which variants, where they differ."""
    names: dict[str, list[str]] = {}
    for one in variants:
        names.setdefault(f"{one.steps:,} steps of {one.tokens_per_step:,} tokens", []).append(one.name)
    if len(names) == 1:
        return f"{next(iter(names))} each"
    return ", ".join(f"{steps} ({', '.join(of_these)})" for steps, of_these in names.items())
