"""An optimizer's groups across a resume: they must be the same, but the settings of the command line win."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

GroupSettings = list[dict[str, Any]]


def check_groups(saved_groups: GroupSettings, optimizer: Optimizer) -> None:
    """Refuse optimizer state that was saved for other groups of parameters, which torch would take or choke on.

    Args:
        saved_groups: `param_groups` of the saved state.
        optimizer: the one that is to take it.

    Raises:
        ValueError: the groups differ in name or number of parameters.
    """
    before, now = (
        [(group["name"], len(group["params"])) for group in g] for g in (saved_groups, optimizer.param_groups)
    )
    if before != now:
        raise ValueError(
            "model.optimizer.name and model.config.router_frozen must be the checkpoint's, since they decide which "
            f"optimizer has which parameters (here {_listed(now)}, in the checkpoint {_listed(before)}); set them "
            "back, or start another run with --run_dir"
        )


def _listed(groups: list[tuple[str, int]]) -> str:
    return " + ".join(f"{count} {name}" for name, count in groups)


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
