"""FSDP2 as a strategy of Lightning: parameters, gradients and optimizer states sharded over the ranks."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from pathmoe.training.checkpoint_names import SaveOptions
from pathmoe.training.sharded_state import load_state, save_state


class ShardedStrategy(ModelParallelStrategy):
    """Every rank is data parallel, and all of them share the shards; Lightning's own would make one node one model.

    Checkpoints are folders to which each rank writes its shards.

    Args:
        num_replicas: groups of ranks that each hold all shards (hybrid sharding): 1 shards over all ranks, the number
            of nodes keeps what is gathered within a node.
    """

    def __init__(self, num_replicas: int = 1) -> None:
        super().__init__(tensor_parallel_size=1)
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

    @cached_property
    def _checkpoint_group(self) -> ProcessGroup:
        # Of its own, as saves may go on beside training, and for the CPU, as they may not wait for the device.
        return dist.new_group(backend="gloo")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The shards of the weights, where they are; Lightning's own would copy them to the CPU."""
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The same of an optimizer's state."""
        return get_optimizer_state_dict(self.model, getattr(optimizer, "optimizer", optimizer))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: SaveOptions | None = None
    ) -> None:
        """See `save_state`; Lightning's own would write over the checkpoint before."""
        path = Path(self.broadcast(filepath))
        save_state(checkpoint, path, storage_options or SaveOptions(), self._checkpoint_group)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """See `load_state`; Lightning's own would run code that a folder names."""
        path, config = Path(self.broadcast(checkpoint_path)), self.lightning_module.config
        return load_state(path, self.model, config, self.optimizers, self._checkpoint_group)
