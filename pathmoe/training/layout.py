"""How a run is spread over ranks, as the settings of its trainer say, without starting one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pathmoe.training.trainer_requirements import strategy_name

_ARGUMENTS = "trainer.strategy.init_args"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks, and what each of them holds."""

    world_size: int = 1
    is_sharded: bool = False
    """Whether parameters are in shards (FSDP2); otherwise each rank has all of them."""
    num_replicas: int = 1
    """Groups of ranks that each hold all shards."""
    expert_parallel_size: int = 1
    """Ranks that share the experts, each with whole ones."""
    gradients_are_views: bool = False
    """Whether DDP reduces gradients where they lie, and not in copies."""

    @property
    def shards(self) -> int:
        """Ranks that a parameter outside of the experts is divided by."""
        return self.world_size // self.num_replicas if self.is_sharded else 1

    @property
    def expert_shards(self) -> int:
        """Ranks that the experts of one rank, its share of all of them, are divided by."""
        if not self.is_sharded:
            return 1
        ranks = self.world_size // self.expert_parallel_size
        return ranks // min(self.num_replicas, ranks)

    def __str__(self) -> str:
        if not self.is_sharded:
            return "a copy of the model on each (DDP)" if self.world_size > 1 else "one device"
        replicas = f", {self.num_replicas} replicas" if self.num_replicas > 1 else ""
        experts = f", experts shared by {self.expert_parallel_size}" if self.expert_parallel_size > 1 else ""
        return f"shards over {self.shards} (FSDP2){replicas}{experts}"


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


def layout_of(trainer: Mapping[str, Any], num_experts: int) -> Layout:
    """The layout that a trainer's settings ask for.

    Args:
        trainer: its arguments, as plain types.
        num_experts: of each MoE layer.

    Raises:
        ValueError: ranks that replicas or experts do not divide into.
    """
    world_size, strategy = world_size_of(trainer), trainer["strategy"]
    arguments = [] if isinstance(strategy, str) else [strategy.get("init_args"), strategy.get("dict_kwargs")]
    given = {key: value for of_one in arguments for key, value in (of_one or {}).items()}
    if strategy_name(trainer) != "ShardedStrategy":
        return Layout(world_size=world_size, gradients_are_views=given.get("gradient_as_bucket_view", False))
    num_replicas, expert_parallel_size = given.get("num_replicas", 1), given.get("expert_parallel_size", 1)
    if num_replicas < 1 or world_size % num_replicas:
        raise ValueError(
            f"{_ARGUMENTS}.num_replicas ({num_replicas}) must divide the {world_size} ranks; set 1, or the number of "
            "nodes, or trainer.devices"
        )
    if expert_parallel_size < 1 or world_size % expert_parallel_size or num_experts % expert_parallel_size:
        raise ValueError(
            f"{_ARGUMENTS}.expert_parallel_size ({expert_parallel_size}) must divide the {world_size} ranks and the "
            f"{num_experts} experts; change it"
        )
    return Layout(
        world_size=world_size, is_sharded=True, num_replicas=num_replicas, expert_parallel_size=expert_parallel_size
    )
