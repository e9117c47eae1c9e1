"""Callback: how the model in training routes a fixed slice of the validation split, every so many steps."""

# Shapes: B blocks of the slice.

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from pathmoe.data import TokenDataModule
from pathmoe.data.blocks import Blocks
from pathmoe.data.loader import batch_ranges
from pathmoe.training.errors import OnAllRanksError
from pathmoe.training.speed import SpeedMonitor
from pathmoe_eval.monitor import monitor

_GLOBAL_BATCHES = 2
_MOST_TOKENS = 2**18


class PathMonitor(Callback):
    """Logs figures of the model's paths, load and routers, and what they cost, every `every_n_steps` optimizer steps.

    The figures are those of `monitor`, under `paths/`, and `paths/cost_share`: the time that they have taken so far
    over the time of training so far, earlier parts of a resumed run included in both. Training goes on as it would have
    without them, to the bit, and its time and speed are logged without theirs.

    A forward is a third of the arithmetic of training. A slice as large as m global batches thus costs m / 3 steps, or
    m / (3 `every_n_steps`) of training, whatever the sizes of the model and the batch and however many ranks share
    them: with the defaults 1.3%, or less, and on top of that the counting. The slice does not depend on
    `trainer.limit_val_batches`.

    Args:
        every_n_steps: optimizer steps from one look to the next.
        num_blocks: blocks of the slice, which lie evenly over the validation split; the whole split where that is
            smaller. null: two global batches, and at most 262,144 tokens.
        per_layer: also log the figures of each layer.
        geometry: also log the share of the energy of router inputs and of logits along their shared direction, and the
            alignment of routers; for a model that is not sharded. Costs the product of the slice's router inputs with
            themselves, D^2 a token and layer, and D^2 numbers of eight bytes a layer from each rank.
    """

    def __init__(
        self, every_n_steps: int = 50, num_blocks: int | None = None, per_layer: bool = False, geometry: bool = False
    ) -> None:
        for key, value in (("every_n_steps", every_n_steps), ("num_blocks", num_blocks)):
            if value is not None and value < 1:
                raise ValueError(f"{key} ({value}) of PathMonitor must be at least 1; raise it")
        self.every_n_steps = every_n_steps
        self.num_blocks = num_blocks
        self.per_layer = per_layer
        self.geometry = geometry
        self._seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose this rank's share of the slice."""
        self._speed = next((callback for callback in trainer.callbacks if isinstance(callback, SpeedMonitor)), None)
        if self._speed is None:
            raise OnAllRanksError("trainer.callbacks (no SpeedMonitor) must hold one beside PathMonitor; add it")
        if self.geometry and any(isinstance(module, FSDPModule) for module in pl_module.modules()):
            raise OnAllRanksError(
                "geometry (true) of PathMonitor must not be set with a strategy that shards, since routers must be "
                "whole; measure checkpoints instead, with pathmoe-eval geometry"
            )
        if not isinstance(trainer.datamodule, TokenDataModule):
            name = type(trainer.datamodule).__name__
            raise OnAllRanksError(f"data ({name}) must be a TokenDataModule for PathMonitor; pass one, or drop it")
        geometry = trainer.datamodule.geometry()
        self._blocks: Blocks = trainer.datamodule.validation_blocks
        sequence_length = trainer.datamodule.manifest.sequence_length
        num_blocks = self.num_blocks
        if num_blocks is None:
            num_blocks = min(_GLOBAL_BATCHES * geometry.global_batch_size, _MOST_TOKENS // sequence_length)
            num_blocks = max(num_blocks, geometry.world_size)
        slice_B = evenly_spaced(len(self._blocks), num_blocks)
        if len(slice_B) < geometry.world_size:
            raise OnAllRanksError(
                f"num_blocks ({len(slice_B)}) of PathMonitor must be at least the number of ranks "
                f"({geometry.world_size}), and so must the blocks of the validation split; raise it, or hold out more"
            )
        ranges = batch_ranges(len(slice_B), geometry.micro_batch_size, geometry.rank, geometry.world_size)
        self._indices = [slice_B[start:stop] for start, stop in ranges]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look and log, where an optimizer step is done and its number is due."""
        is_step_done = batch["micro_batch"] + 1 == trainer.accumulate_grad_batches
        if not is_step_done or trainer.global_step % self.every_n_steps:
            return
        assert self._speed is not None
        if pl_module.device.type != "cpu":
            torch.accelerator.synchronize(pl_module.device)  # what is still under way is training's
        training_seconds = self._speed.seconds_so_far
        start = time.perf_counter()
        with self._speed.paused(), trainer.precision_plugin.forward_context():
            figures = monitor(pl_module.model, self._batches(), self.per_layer, self.geometry)
        self._seconds += time.perf_counter() - start
        figures["cost_share"] = self._seconds / training_seconds
        for logger in trainer.loggers:
            # Lightning counts the steps of its log from 0; its own way to them leaves out what is not due there too.
            logger.log_metrics({f"paths/{name}": value for name, value in figures.items()}, trainer.global_step - 1)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        for indices_B in self._indices:
            yield self._blocks.batch(indices_B)

    def state_dict(self) -> dict[str, Any]:
        """The time taken so far."""
        return {"seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's time."""
        self._seconds = state_dict["seconds"]


def evenly_spaced(num_blocks: int, num_chosen: int) -> NDArray[np.int64]:
    """Indices of `num_chosen` of `num_blocks` blocks that lie evenly over them, in order; of all where they are fewer.

    Neighbouring blocks are often of one document, so that the first ones would say less of the split.
    """
    num_chosen = min(num_chosen, num_blocks)
    return np.arange(num_chosen, dtype=np.int64) * num_blocks // num_chosen
