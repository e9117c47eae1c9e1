"""The learning rate over a run: warm-up, then a constant rate and its decay, as a factor on each group's rate."""

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Course of the learning rate.

    Raises:
        ValueError: a value out of its range; the message names the key and the range.
    """

    name: Literal["cosine", "wsd", "constant"] = "cosine"
    """After warm-up: cosine decay to the end, a constant rate with a decay at the end (wsd), or a constant rate."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    decay_fraction: float = 0.2
    """Part of trainer.max_steps that a wsd schedule decays over, at the end."""
    min_lr_ratio: float = 0.1
    """Rate at the end of the decay, relative to the peak."""

    def __post_init__(self) -> None:
        if self.name not in ("cosine", "wsd", "constant"):
            raise ValueError(f"model.schedule.name ({self.name}) must be cosine, wsd or constant; pick one of them")
        if self.warmup_steps < 0:
            raise ValueError(
                f"model.schedule.warmup_steps ({self.warmup_steps}) must be at least 0; 0 starts at the full rate"
            )
        for field in ("decay_fraction", "min_lr_ratio"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise ValueError(f"model.schedule.{field} ({value}) must be from 0 to 1; give it as a fraction")


def decay_steps(max_steps: int, config: ScheduleConfig) -> int:
    """Steps at the end of the run over which the rate decays."""
    if config.name == "cosine":
        return max_steps - config.warmup_steps
    return round(config.decay_fraction * max_steps) if config.name == "wsd" else 0


def lr_factor(step: int, max_steps: int, config: ScheduleConfig) -> float:
    """Factor on the peak rate for optimizer step `step`, counted from 0.

    Warm-up is linear and already moves in step 0; step `warmup_steps` is the first at the peak, and `max_steps`, one
    past the last step, is where the decay would reach `min_lr_ratio`. Later steps keep that rate.

    Source: the cosine is that of Loshchilov and Hutter 2017 (arXiv 1608.03983, eq. 5) without restarts; wsd decays as
    1 - sqrt, which Hägele et al. 2024 (arXiv 2405.18392) find better than a linear decay.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    decay = decay_steps(max_steps, config)
    if decay == 0:
        return 1.0
    progress = min(1.0, max(0.0, 1 - (max_steps - step) / decay))
    shape = (1 + math.cos(math.pi * progress)) / 2 if config.name == "cosine" else 1 - math.sqrt(progress)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape


def check_schedule(config: ScheduleConfig, max_steps: int) -> None:
    """Refuse a schedule that a run of `max_steps` optimizer steps cannot have.

    Raises:
        ValueError: a run without a number of steps, or one too short for its warm-up and decay.
    """
    if max_steps < 1:
        raise ValueError(f"trainer.max_steps ({max_steps}) must be at least 1; set the number of optimizer steps")
    decay = 0 if config.name == "cosine" else decay_steps(max_steps, config)
    if config.warmup_steps + decay > max_steps:
        also = f" and the {decay} steps of model.schedule.decay_fraction ({config.decay_fraction})" if decay else ""
        raise ValueError(
            f"model.schedule.warmup_steps ({config.warmup_steps}){also} must fit in trainer.max_steps ({max_steps}); "
            "shorten them or train for longer"
        )


def build_scheduler(optimizer: Optimizer, config: ScheduleConfig, max_steps: int) -> LambdaLR:
    """A scheduler that multiplies each group's own rate by `lr_factor`; to be stepped once an optimizer step.

    Raises:
        ValueError: see `check_schedule`.
    """
    check_schedule(config, max_steps)
    return LambdaLR(optimizer, lambda step: lr_factor(step, max_steps, config))
