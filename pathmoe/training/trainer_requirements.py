"""What training needs of Lightning's trainer, checked before anything is built or written."""

from lightning.pytorch import Trainer

_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")


def check_trainer(trainer: Trainer) -> None:
    """Refuse trainer settings under which training would go wrong.

    Raises:
        ValueError: half precision that would need a loss scale, or an interval that would cut an optimizer step.
    """
    if trainer.precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision ({trainer.precision}) must be one of {', '.join(_PRECISIONS)}; use bf16-mixed, which "
            "needs no loss scale"
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
