"""FSDP2 as a strategy of Lightning: parameters, gradients and optimizer states sharded over the ranks."""

import math
from datetime import timedelta

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pathmoe.training.sharding import EXPERTS


class ShardedStrategy(ModelParallelStrategy):
    """Every rank is data parallel, and all of them share the shards; Lightning's own would make one node one model.

    Checkpoints are files of whole weights, put together on rank 0.

    Args:
        num_replicas: groups of ranks that each hold all shards (hybrid sharding): 1 shards over all ranks, the number
            of nodes keeps what is gathered within a node.
        expert_parallel_size: ranks, next to each other, that share the experts: each has some of them whole, and tokens
            travel. What is then still to be sharded of an expert is sharded over the ranks of its replica.
        timeout: how long a rank waits for the others before the run ends.
    """

    def __init__(
        self, num_replicas: int = 1, expert_parallel_size: int = 1, timeout: timedelta = timedelta(minutes=10)
    ) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)
        self.num_replicas = num_replicas
        self.expert_parallel_size = expert_parallel_size

    def setup_environment(self) -> None:
        """Begin the process group, with all ranks data parallel.

        Raises:
            ValueError: replicas, or groups that share experts, that the ranks do not divide into.
        """
        num_ranks = self.num_processes * self.num_nodes
        if self.num_replicas < 1 or num_ranks % self.num_replicas:
            raise ValueError(
                f"trainer.strategy.init_args.num_replicas ({self.num_replicas}) must divide the {num_ranks} ranks; set "
                "1, or the number of nodes"
            )
        if self.expert_parallel_size < 1 or num_ranks % self.expert_parallel_size:
            raise ValueError(
                f"trainer.strategy.init_args.expert_parallel_size ({self.expert_parallel_size}) must divide the "
                f"{num_ranks} ranks; set 1, or the number of devices of a node"
            )
        self._data_parallel_size = num_ranks
        super().setup_environment()

    def sharding_mesh(self) -> DeviceMesh:
        """The ranks as FSDP2 wants them: one dimension, or replicas and the shards within them."""
        if self.num_replicas == 1:
            return self.device_mesh["data_parallel"]
        shape = (self.num_replicas, self.world_size // self.num_replicas)
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicas", "shards"))

    @property
    def num_expert_replicas(self) -> int:
        """Groups of ranks that each hold all of every expert: fewer than the replicas of the rest where groups that
        share the experts span several of these."""
        return math.gcd(self.num_replicas, self.world_size // self.expert_parallel_size)

    @property
    def num_expert_shards(self) -> int:
        """Ranks that share the rows of an expert."""
        return self.world_size // self.expert_parallel_size // self.num_expert_replicas

    def experts_mesh(self) -> DeviceMesh | None:
        """The ranks as the experts want them: replicas if there are several, shards, experts; None without expert
        parallelism."""
        if self.expert_parallel_size == 1:
            return None
        sizes = {"shards": self.num_expert_shards, EXPERTS: self.expert_parallel_size}
        if self.num_expert_replicas > 1:
            sizes = {"replicas": self.num_expert_replicas} | sizes
        return init_device_mesh(self.root_device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
