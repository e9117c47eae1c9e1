"""FSDP2 as a strategy of Lightning: parameters, gradients and optimizer states sharded over the ranks."""

from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.optim import Optimizer

from pathmoe.training.checkpoint_names import SaveOptions
from pathmoe.training.layout import Layout
from pathmoe.training.sharded_state import load_state, save_state
from pathmoe.training.sharding import EXPERTS


class ShardedStrategy(ModelParallelStrategy):
    """Every rank is data parallel, and all of them share the shards; Lightning's own would make one node one model.

    Checkpoints are folders to which each rank writes its shards.

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
        super().__init__(tensor_parallel_size=1, timeout=timeout)
        self.num_replicas = num_replicas
        self.expert_parallel_size = expert_parallel_size
        self.layout: Layout

    def setup_environment(self) -> None:
        """Begin the process group, with all ranks data parallel.

        Raises:
            ValueError: as `Layout`.
        """
        num_ranks = self.num_processes * self.num_nodes
        self.layout = Layout(
            world_size=num_ranks, is_sharded=True, num_replicas=self.num_replicas,
            expert_parallel_size=self.expert_parallel_size,
        )  # fmt: skip
        self._data_parallel_size = num_ranks
        super().setup_environment()

    def sharding_mesh(self) -> DeviceMesh:
        """The ranks as FSDP2 wants them: one dimension, or replicas and the shards within them."""
        if self.num_replicas == 1:
            return self.device_mesh["data_parallel"]
        return self._mesh({"replicas": self.num_replicas, "shards": self.layout.shards})

    def experts_mesh(self) -> DeviceMesh | None:
        """The ranks as the experts want them: replicas if there are several, shards, experts; None without expert
        parallelism."""
        if self.expert_parallel_size == 1:
            return None
        sizes = {"shards": self.layout.expert_shards, EXPERTS: self.expert_parallel_size}
        if self.layout.expert_replicas > 1:
            sizes = {"replicas": self.layout.expert_replicas} | sizes
        return self._mesh(sizes)

    def _mesh(self, sizes: dict[str, int]) -> DeviceMesh:
        mesh = init_device_mesh(self.root_device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        for group in mesh.get_all_groups():
            # Groups of some of the ranks would wait for as long as torch thinks fit.
            _set_pg_timeout(self._timeout, group)
        return mesh

    @cached_property
    def _checkpoint_group(self) -> ProcessGroup:
        # Of its own, as saves may go on beside training, and for the CPU, as they may not wait for the device.
        return dist.new_group(backend="gloo", timeout=self._timeout)

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
