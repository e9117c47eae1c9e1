"""Callback that compares the ranks of a run: who is slow, who waits for data, and how much memory each takes."""

import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.hooks import RemovableHandle

from pathmoe.training.memory_use import host_memory_bytes, take_device_peaks
from pathmoe.training.speed import SpeedMonitor
from pathmoe.training.stopwatch import Stopwatch

_STRAGGLES_FROM = 0.2
"""Share of a step for which the slowest rank keeps the others before it is named on the terminal; our choice."""


class RankReading(NamedTuple):
    """What one rank has seen since the last row of the log, seconds per optimizer step and bytes."""

    own_seconds: float
    data_seconds: float
    host_bytes: float
    allocated_bytes: float
    reserved_bytes: float


class FetchTimer(PassThroughProfiler):
    """Times the training loop's wait for its next batch, of which Lightning tells profilers."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        """Of the last wait."""
        self._started = 0.0

    def start(self, action_name: str) -> None:
        """Read the clock where the loop asks for a batch."""
        if action_name.endswith(".train_dataloader_next"):
            self._started = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Read it again where it has got one."""
        if action_name.endswith(".train_dataloader_next"):
            self.seconds = time.perf_counter() - self._started


class RankMonitor(Callback):
    """Logs `speed/*` beside the figures of a `SpeedMonitor`, which must come before it: see `rank_figures`.

    Ranks wait for each other in every step, so that all of them take as long as the slowest. What tells them apart is
    *own* time, in which a rank waits for no other: for its data, in its optimizer, and in its forwards where these
    communicate nothing, that is under DDP without a balance loss over the global batch. Of a GPU that is slow where
    layers are sharded, and wait for each other, the optimizer's share alone tells.

    Where the slowest rank keeps the others for long, it is named on the terminal, once until it is another one.

    Args:
        speed: knows how long a step takes.
    """

    def __init__(self, speed: SpeedMonitor) -> None:
        self.speed = speed
        self._fetch = FetchTimer()
        self._data_seconds = 0.0
        self._is_interrupted = True
        self._steps = 0
        self._hosts: list[str] = []
        self._named: int | None = None
        self._own: Stopwatch
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Time fetches, unless the user has a profiler, which reports them itself."""
        if type(trainer.profiler) is PassThroughProfiler:
            trainer.profiler = self._fetch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn who the ranks are; time the optimizer from now on."""
        self._own = Stopwatch(pl_module.device)
        if trainer.world_size == 1:
            return
        self._hosts = [""] * trainer.world_size
        dist.all_gather_object(self._hosts, socket.gethostname())
        # A member steps once the closure, with its forwards, backwards and what ranks say to each other, is over.
        for member in pl_module.optimizers().optimizer.members:
            self._hooks.append(member.register_step_pre_hook(lambda *_: self._own.start()))
            self._hooks.append(member.register_step_post_hook(lambda *_: self._own.stop()))
        if _forwards_are_own(trainer, pl_module):
            # Of the model itself: DDP's wrapper hands buffers around before.
            model = pl_module.model
            self._hooks.append(
                model.register_forward_pre_hook(lambda *_: self._own.start() if model.training else None)
            )
            self._hooks.append(model.register_forward_hook(lambda *_: self._own.stop() if model.training else None))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the wait for the batch, unless the time of the step begins only now."""
        if not self._is_interrupted:
            self._data_seconds += self._fetch.seconds
        self._is_interrupted = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare and log at the trainer's interval."""
        if batch["micro_batch"] + 1 < trainer.accumulate_grad_batches:
            return
        self._steps += 1
        if trainer.global_step % trainer.log_every_n_steps:
            return
        own_seconds = self._own.take() + self._data_seconds
        reading = RankReading(
            own_seconds / self._steps,
            self._data_seconds / self._steps,
            host_memory_bytes(),
            *take_device_peaks(pl_module.device),
        )
        self._data_seconds, self._steps = 0.0, 0
        readings = _of_all_ranks(reading, pl_module)
        figures = rank_figures(readings, self.speed.step_seconds)
        if trainer.profiler is not self._fetch:
            del figures["speed/data_wait_share"]
        pl_module.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()})
        self._name_the_slowest(pl_module, figures)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next wait for data is no part of a step, as for the `SpeedMonitor`."""
        self._is_interrupted = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """The same."""
        self._is_interrupted = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _name_the_slowest(self, pl_module: LightningModule, figures: dict[str, float]) -> None:
        lost = figures.get("speed/straggler_seconds", 0.0)
        if lost < _STRAGGLES_FROM * self.speed.step_seconds:
            return
        rank = int(figures["speed/slowest_rank"])
        if rank != self._named:
            self._named = rank
            pl_module.print(
                f"rank {rank} on {self._hosts[rank]} is slow: the others wait {lost:.2g} s of "
                f"{self.speed.step_seconds:.2g} s a step for it"
            )


def rank_figures(readings: Sequence[RankReading], step_seconds: float) -> dict[str, float]:
    """What all ranks have read, as figures of the log.

    `speed/data_wait_share` is the share of a step in which the rank that waits longest for its data does so; memory is
    that of the rank with most: the host's now, the device's at its highest since the last row. Of several ranks there
    are also the least, the (lower) median and the greatest `speed/own_seconds_*` of a step, `speed/slowest_rank`, which
    has the greatest, and `speed/straggler_seconds`, the greatest less the median: what most ranks lose to it in a step.

    Args:
        readings: one of each rank, in order.
        step_seconds: of a whole optimizer step.
    """
    own = [reading.own_seconds for reading in readings]
    figures = {
        "speed/data_wait_share": max(reading.data_seconds for reading in readings) / step_seconds,
        "speed/host_memory_gib": max(reading.host_bytes for reading in readings) / 2**30,
    }
    if device_bytes := max(reading.allocated_bytes for reading in readings):
        figures["speed/device_memory_gib"] = device_bytes / 2**30
        figures["speed/device_reserved_gib"] = max(reading.reserved_bytes for reading in readings) / 2**30
    if len(own) > 1:
        median = statistics.median_low(own)
        figures |= {
            "speed/own_seconds_min": min(own),
            "speed/own_seconds_median": median,
            "speed/own_seconds_max": max(own),
            "speed/straggler_seconds": max(own) - median,
            "speed/slowest_rank": own.index(max(own)),
        }
    return figures


def _forwards_are_own(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether the model's forward waits for no other rank."""
    config = pl_module.config
    balances_globally = config.router_aux_loss_coef and config.router_aux_loss_scope == "global_batch"
    return type(trainer.strategy) is DDPStrategy and not balances_globally


def _of_all_ranks(reading: RankReading, pl_module: LightningModule) -> list[RankReading]:
    """Every rank must call this. It waits for the device, as do all ranks here when they agree on whether to stop."""
    if pl_module.trainer.world_size == 1:
        return [reading]
    own = torch.tensor(reading, dtype=torch.float64, device=pl_module.device)
    of_ranks = [torch.empty_like(own) for _ in range(pl_module.trainer.world_size)]
    dist.all_gather(of_ranks, own)
    return [RankReading(*row) for row in torch.stack(of_ranks).tolist()]
