"""How a run is spread over ranks: replicas, shards, and ranks that share the experts."""

from dataclasses import dataclass
from math import gcd

_ARGUMENTS = "trainer.strategy.init_args"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks, and what each of them holds.

    Raises:
        ValueError: ranks that do not divide into replicas, or into groups that share the experts.
    """

    world_size: int = 1
    is_sharded: bool = False
    """Whether parameters are in shards (FSDP2); otherwise each rank has all of them."""
    num_replicas: int = 1
    """Groups of ranks that each hold all shards."""
    expert_parallel_size: int = 1
    """Ranks that share the experts, each with whole ones."""
    gradients_are_views: bool = False
    """Whether DDP reduces gradients where they lie, and not in copies."""

    def __post_init__(self) -> None:
        for key, what in (("num_replicas", "number of nodes"), ("expert_parallel_size", "number of devices of a node")):
            value = getattr(self, key)
            if value < 1 or self.world_size % value:
                raise ValueError(
                    f"{_ARGUMENTS}.{key} ({value}) must divide the {self.world_size} ranks; set 1, or the {what}, or "
                    "change trainer.devices"
                )

    @property
    def shards(self) -> int:
        """Ranks that a parameter outside of the experts is divided by."""
        return self.world_size // self.num_replicas if self.is_sharded else 1

    @property
    def expert_replicas(self) -> int:
        """Groups of ranks that each hold all of every expert: fewer than the replicas of the rest where ranks that
        share the experts belong to several of these."""
        return gcd(self.num_replicas, self.world_size // self.expert_parallel_size)

    @property
    def expert_shards(self) -> int:
        """Ranks that the experts of one rank, its share of all of them, are divided by."""
        return self.world_size // self.expert_parallel_size // self.expert_replicas if self.is_sharded else 1

    def __str__(self) -> str:
        if not self.is_sharded:
            return "a copy of the model on each (DDP)" if self.world_size > 1 else "one device"
        replicas = f", {self.num_replicas} replicas" if self.num_replicas > 1 else ""
        experts = f", experts shared by {self.expert_parallel_size}" if self.expert_parallel_size > 1 else ""
        return f"shards over {self.shards} (FSDP2){replicas}{experts}"
