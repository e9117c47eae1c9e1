"""FSDP2 as a strategy of Lightning: parameters, gradients and optimizer states sharded over the ranks."""

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


class ShardedStrategy(ModelParallelStrategy):
    """Every rank is data parallel, and all of them share the shards; Lightning's own would make one node one model.

    Checkpoints are files of whole weights, put together on rank 0.

    Args:
        num_replicas: groups of ranks that each hold all shards (hybrid sharding): 1 shards over all ranks, the number
            of nodes keeps what is gathered within a node.
    """

    def __init__(self, num_replicas: int = 1) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.num_replicas = num_replicas

    def setup_environment(self) -> None:
        """Begin the process group, with all ranks data parallel.

        Raises:
            ValueError: replicas that the ranks do not divide into.
        """
        num_ranks = self.num_processes * self.num_nodes
        if self.num_replicas < 1 or num_ranks % self.num_replicas:
            raise ValueError(
                f"trainer.strategy.init_args.num_replicas ({self.num_replicas}) must divide the {num_ranks} ranks; set "
                "1, or the number of nodes"
            )
        self._data_parallel_size = num_ranks
        super().setup_environment()

    def sharding_mesh(self) -> DeviceMesh:
        """The ranks as FSDP2 wants them: one dimension, or replicas and the shards within them."""
        if self.num_replicas == 1:
            return self.device_mesh["data_parallel"]
        shape = (self.num_replicas, self.world_size // self.num_replicas)
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicas", "shards"))
