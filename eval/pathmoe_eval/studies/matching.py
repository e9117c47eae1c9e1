"""Variants made as large as another one, and what is left of the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pathmoe.config import PathMoEConfig
from pathmoe.counts import flops_per_token, parameter_counts
from pathmoe_eval.studies.study import Match, Quantity

MODEL_CONFIG = "model.config."
MATCHED_BY = ("router_dim", "router_rank", "moe_intermediate_size", "intermediate_size")
"""Settings that a size grows with and that leave depth, width, experts and their number as they are."""

_HIGHEST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a variant is."""

    parameters: int
    active_parameters: int
    """Those that one token passes through."""
    router_parameters: int
    flops: int
    """Of training, per token."""

    def of(self, quantity: Quantity) -> int:
        """The one of that name."""
        return int(getattr(self, quantity))


def sizes_of(settings: Mapping[str, Any], sequence_length: int) -> Sizes:
    """Sizes of the model of these settings (`model.config`), with its FLOPs at that sequence length."""
    config = PathMoEConfig(**settings)
    counts = parameter_counts(config)
    return Sizes(
        parameters=counts.total,
        active_parameters=counts.active,
        router_parameters=counts.routers,
        flops=flops_per_token(config, sequence_length).training,
    )


def matched_value(settings: Mapping[str, Any], key: str, quantity: Quantity, target: int, sequence_length: int) -> int:
    """The value of a whole-number setting that brings a quantity nearest to a target, of two as near the lower one.

    Args:
        settings: `model.config` of the variant.
        key: the setting, with its `model.config.`.
        quantity: what is to match.
        target: what it is to be.
        sequence_length: for FLOPs.

    Raises:
        ValueError: a key that is no such setting, or that the quantity does not depend on.
    """
    name = key.removeprefix(MODEL_CONFIG)
    if name not in MATCHED_BY or name == key:
        allowed = ", ".join(MODEL_CONFIG + one for one in MATCHED_BY)
        raise ValueError(f"match.by ({key}) must be one of {allowed}; change it")
    lowest = 0 if name == "router_rank" else 1

    def quantity_at(value: int) -> int:
        return sizes_of({**settings, name: value}, sequence_length).of(quantity)

    if quantity_at(lowest + 1) == quantity_at(lowest):
        raise ValueError(
            f"match.by ({key}) must be a setting that {quantity} depends on, but with model.config.router_type "
            f"({settings.get('router_type')}) it does not; choose another"
        )
    above = _first_reaching(quantity_at, target, lowest)
    return min((value for value in (above - 1, above) if value >= lowest), key=lambda v: abs(quantity_at(v) - target))


def _first_reaching(quantity_at: Callable[[int], int], target: int, lowest: int) -> int:
    """The lowest value at which a growing quantity has reached the target."""
    low, high = lowest, lowest + 1
    while quantity_at(high) < target and high < _HIGHEST:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if quantity_at(middle) >= target else (middle + 1, high)
    return low


def check_match(match: Match, sizes: Mapping[str, Sizes]) -> None:
    """Refuse sizes that differ by more than the tolerance.

    Args:
        match: what was asked for.
        sizes: of all variants, after it.

    Raises:
        ValueError: names the variant that is farthest off.
    """
    target = sizes[match.to].of(match.quantity)
    off = {name: abs(one.of(match.quantity) - target) for name, one in sizes.items()}
    worst = max(off, key=lambda name: off[name])
    if off[worst] > match.tolerance * target:
        how = f"nearest by {match.by[worst]}" if worst in match.by else "which match.by does not name"
        raise ValueError(
            f"variants.{worst}: {match.quantity} ({sizes[worst].of(match.quantity):,}, {how}) must be within "
            f"{match.tolerance:.2%} of those of {match.to} ({target:,}), but {off[worst] / target:.2%} are left; name "
            "another key in match.by, or raise match.tolerance"
        )
