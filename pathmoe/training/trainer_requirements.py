"""What training needs of Lightning's trainer, checked before anything is built or written."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies under which a rank does not hold all parameters and gradients.

    Raises:
        ValueError: any strategy but those for one device and for DDP.
    """
    # Exact types: DeepSpeed's strategy, for one, is a DDPStrategy too.
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        name = type(trainer.strategy).__name__
        raise ValueError(
            f"trainer.strategy ({name}) must be auto or ddp: sharded training is not supported yet; change it, and use "
            "bf16-mixed, activation checkpointing or a smaller data.micro_batch_size where memory is short"
        )


def check_trainer(trainer: Trainer) -> None:
    """Refuse trainer settings under which training would go wrong.

    Raises:
        ValueError: half precision that would need a loss scale, a validation that would never come, or an interval that
            would cut an optimizer step.
    """
    if trainer.precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision ({trainer.precision}) must be one of {', '.join(_PRECISIONS)}; use bf16-mixed, which "
            "needs no loss scale"
        )
    every_n_epochs = trainer.check_val_every_n_epoch
    if every_n_epochs is not None and every_n_epochs > 1:
        raise ValueError(
            f"trainer.check_val_every_n_epoch ({every_n_epochs}) must be null or 1, as the stream of blocks has no "
            "epochs to count; set trainer.val_check_interval"
        )
    accumulate = trainer.accumulate_grad_batches
    for key in ("val_check_interval", "limit_train_batches"):
        value = getattr(trainer, key, "a duration")  # which Lightning keeps elsewhere
        # Neither 1.0, the whole of an endless stream, nor its other spelling None cuts anything.
        if value not in (None, 1.0) and accumulate > 1 and (not isinstance(value, int) or value % accumulate):
            raise ValueError(
                f"trainer.{key} ({value}) must be a multiple of trainer.accumulate_grad_batches ({accumulate}), as it "
                "counts micro-batches and may not cut an optimizer step; change one of them"
            )
