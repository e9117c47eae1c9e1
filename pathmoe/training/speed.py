"""Callback for the run's speed: tokens seen, tokens and steps per second, model FLOPs utilisation, peak memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pathmoe.counts import flops_per_token
from pathmoe.training.gpus import check_peak_tflops, peak_of_device
from pathmoe.training.memory_use import peak_memory_bytes


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float | None:
    """What the device does at most in dense products of that dtype; None where nobody says.

    A CPU is in no table: what it could do is nobody's figure, and utilisation of a guess would say nothing.
    """
    if device.type == "cpu":
        return None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if (ours := peak_of_device(name)) is not None:
        return ours if dtype == torch.bfloat16 else None
    # Its figures of the NVL modules are with sparsity.
    return None if "nvl" in name.lower() else get_available_flops(device, dtype)


class SpeedMonitor(Callback):
    """Logs `train/tokens`, `train/tokens_per_second`, `train/step_seconds`, `train/mfu` and `train/peak_memory_gib`.

    Utilisation is that of the FLOPs that training needs, without what activation checkpointing computes again, and is
    left out where the peak of the device is not known.

    Speed is that of training, waiting for data included, since the last time it was logged, on all ranks together;
    validation and checkpoints do not count. `seconds` and `tokens` sum over the whole run, parts before a resume
    included; so does `wall_seconds`, in which validation and checkpoints count too.

    Args:
        peak_tflops: what one device does at most in the precision of the run, dense; None takes the tables' figure, see
            `peak_flops_per_second`.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        check_peak_tflops(peak_tflops)
        self.peak_tflops = peak_tflops
        self.step_seconds = float("nan")
        """Of an optimizer step, on average over those of the last row."""
        self.seconds = 0.0
        self.tokens = 0
        self._earlier_wall_seconds = 0.0
        self._started: float | None = None
        self._window_seconds = 0.0
        self._window_tokens = 0
        self._window_steps = 0
        self._peak_flops: float | None = None
        self._peak_memory_bytes = 0
        self._clock: float | None = None

    @property
    def wall_seconds(self) -> float:
        """Time since training started; of the parts before a resume, up to the checkpoint."""
        here = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._earlier_wall_seconds + here

    @property
    def seconds_so_far(self) -> float:
        """`seconds`, and those of the micro-batch that is under way."""
        return self.seconds + (0.0 if self._clock is None else time.perf_counter() - self._clock)

    def peak_memory_bytes(self, device: torch.device) -> int:
        """Highest memory so far, on this rank, also where somebody else starts the device's count anew."""
        self._peak_memory_bytes = max(self._peak_memory_bytes, peak_memory_bytes(device))
        return self._peak_memory_bytes

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it time does not count as training, whichever callback is called first."""
        before = time.perf_counter()
        try:
            yield
        finally:
            if self._clock is not None:
                self._clock += time.perf_counter() - before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what utilisation is measured against."""
        self._started = time.perf_counter()
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        given = self.peak_tflops and self.peak_tflops * 1e12
        of_device = given or peak_flops_per_second(pl_module.device, dtype)
        self._peak_flops = of_device and of_device * trainer.world_size

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock, unless it runs since the last step."""
        if self._clock is None:
            self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the clock, and log at the trainer's interval."""
        assert self._clock is not None
        before, self._clock = self._clock, time.perf_counter()
        seconds, tokens = self._clock - before, batch["input_ids"].numel() * trainer.world_size
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
        self._window_seconds, self._window_tokens = self._window_seconds + seconds, self._window_tokens + tokens
        if batch["micro_batch"] + 1 < trainer.accumulate_grad_batches:
            return
        self._window_steps += 1
        if trainer.global_step % trainer.log_every_n_steps:
            return
        speed = self._window_tokens / self._window_seconds
        self.step_seconds = self._window_seconds / self._window_steps
        figures = {
            "train/tokens": self.tokens,
            "train/tokens_per_second": speed,
            "train/step_seconds": self.step_seconds,
            "train/peak_memory_gib": self.peak_memory_bytes(pl_module.device) / 2**30,
        }
        if self._peak_flops is not None:
            flops = flops_per_token(pl_module.config, batch["input_ids"].shape[1]).training
            figures["train/mfu"] = speed * flops / self._peak_flops
        # In double precision, which counts tokens exactly.
        pl_module.log_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()})
        self._window_seconds, self._window_tokens, self._window_steps = 0.0, 0, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock; it starts again with the next step."""
        self._clock = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop the clock; it starts again with the next step."""
        self._clock = None

    def state_dict(self) -> dict[str, Any]:
        """Totals for the checkpoint."""
        return {"seconds": self.seconds, "tokens": self.tokens, "wall_seconds": self.wall_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's totals."""
        self.seconds, self.tokens = state_dict["seconds"], state_dict["tokens"]
        self._earlier_wall_seconds = state_dict["wall_seconds"]
