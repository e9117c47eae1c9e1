"""An optimizer's settings across a resume: torch restores them with the state, and the command line must win."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

GroupSettings = list[dict[str, Any]]


def group_settings(optimizer: Optimizer) -> GroupSettings:
    """Settings of each parameter group, `initial_lr` among them; not its parameters nor its momentary rate."""
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]


def apply_group_settings(optimizer: Optimizer, scheduler: LambdaLR, settings: GroupSettings) -> None:
    """Put settings back that a checkpoint has overwritten, and the learning rates that follow from them.

    Without a change the rates keep their bits: they are computed as the scheduler does.

    Args:
        optimizer: after its state was restored.
        scheduler: restored too; says at which step the run is.
        settings: what `group_settings` gave for the optimizer when it was new.
    """
    scheduler.base_lrs = [group["initial_lr"] for group in settings]
    for group, own, factor in zip(optimizer.param_groups, settings, scheduler.lr_lambdas, strict=True):
        group.update(own)
        group["lr"] = own["initial_lr"] * factor(scheduler.last_epoch)
