"""What a trainer's settings ask for, without building one."""

import os
from collections.abc import Mapping
from typing import Any

from pathmoe.training.layout import Layout


def strategy_name(settings: Mapping[str, Any]) -> str:
    """The strategy that a trainer's arguments ask for: a class's name, or Lightning's short one."""
    strategy = settings["strategy"]
    return strategy if isinstance(strategy, str) else str(strategy["class_path"].rpartition(".")[-1])


def world_size_of(trainer: Mapping[str, Any]) -> int:
    """Ranks that a trainer's settings ask for; where the machine decides, those of the launcher, or one a node."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        devices = len(devices)
    if not str(devices).isdigit():
        if launched := os.environ.get("WORLD_SIZE"):
            return int(launched)
        devices = 1
    return int(trainer["num_nodes"]) * int(devices)


def layout_of(trainer: Mapping[str, Any]) -> Layout:
    """The layout that a trainer's settings ask for.

    Args:
        trainer: its arguments, as plain types.

    Raises:
        ValueError: as `Layout`.
    """
    world_size, strategy = world_size_of(trainer), trainer["strategy"]
    arguments = [] if isinstance(strategy, str) else [strategy.get("init_args"), strategy.get("dict_kwargs")]
    given = {key: value for of_one in arguments for key, value in (of_one or {}).items()}
    if strategy_name(trainer) != "ShardedStrategy":
        return Layout(world_size=world_size, gradients_are_views=given.get("gradient_as_bucket_view", False))
    sizes = {key: given[key] for key in ("num_replicas", "expert_parallel_size") if key in given}
    return Layout(world_size=world_size, is_sharded=True, **sizes)
