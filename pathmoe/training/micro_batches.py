"""How many micro-batches an optimizer step has, and validation counted in optimizer steps."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

# What Lightning takes where nothing is given.
_UNSET_INTERVALS = (None, 1.0)


def micro_batches_per_step(
    accumulate_grad_batches: int, micro_batch_size: int, global_batch_size: int | None, world_size: int
) -> int:
    """Micro-batches of one optimizer step on one rank.

    Where the global batch is given, the default of one follows from it, so that the same configuration trains on any
    number of ranks. A number that was chosen stays, and so does a global batch that no accumulation makes up for: the
    data module refuses what does not fit.

    Args:
        accumulate_grad_batches: what the trainer was given.
        micro_batch_size: blocks of one forward on one rank.
        global_batch_size: blocks of one optimizer step; None for the product of the others.
        world_size: ranks.
    """
    per_pass = micro_batch_size * world_size
    if accumulate_grad_batches != 1 or global_batch_size is None or global_batch_size % per_pass:
        return accumulate_grad_batches
    return global_batch_size // per_pass


def settled_trainer_settings(
    settings: Mapping[str, Any], micro_batch_size: int, global_batch_size: int | None, world_size: int,
    validate_every_n_steps: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Settings of a trainer with its micro-batches and its interval between validations as the run will have them.

    Args:
        settings: `accumulate_grad_batches` and `val_check_interval` of the trainer, and any others.
        micro_batch_size: blocks of one forward on one rank.
        global_batch_size: blocks of one optimizer step, or None.
        world_size: ranks.
        validate_every_n_steps: optimizer steps between validations; None leaves the trainer's interval as it is.

    Raises:
        ValueError: an interval in both units, or one below a step.
    """
    accumulate = micro_batches_per_step(
        settings["accumulate_grad_batches"], micro_batch_size, global_batch_size, world_size
    )
    interval = settings["val_check_interval"]
    if validate_every_n_steps is not None:
        if validate_every_n_steps < 1:
            raise ValueError(f"validate_every_n_steps ({validate_every_n_steps}) must be at least 1; raise it")
        if interval not in _UNSET_INTERVALS:
            raise ValueError(
                f"validate_every_n_steps ({validate_every_n_steps}) must be null where trainer.val_check_interval "
                f"({interval}) says the same in micro-batches; set one of them to null"
            )
        interval = validate_every_n_steps * accumulate
    return {**settings, "accumulate_grad_batches": accumulate, "val_check_interval": interval}


def settle_micro_batches(
    trainer: Trainer, micro_batch_size: int, global_batch_size: int | None, validate_every_n_steps: int | None
) -> None:
    """The same for a trainer that is built, and so knows its ranks, but does not run yet.

    Raises:
        ValueError: as `settled_trainer_settings`.
    """
    keys = ("accumulate_grad_batches", "val_check_interval")
    # A duration is kept elsewhere.
    settings = {key: getattr(trainer, key, "a duration") for key in keys}
    # The strategy knows its world size once its processes have started, as late as in fit.
    world_size = trainer.num_nodes * trainer.num_devices
    settled = settled_trainer_settings(
        settings, micro_batch_size, global_batch_size, world_size, validate_every_n_steps
    )
    for key in keys:
        if settled[key] != settings[key]:
            setattr(trainer, key, settled[key])
