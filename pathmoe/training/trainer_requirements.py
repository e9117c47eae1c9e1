"""What training needs of Lightning's trainer, checked before anything is built or written."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from pathmoe.training.sharded_strategy import ShardedStrategy
from pathmoe.training.trainer_settings import strategy_name

_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")
_SHORT_PRECISIONS = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
_INTERVALS = ("val_check_interval", "limit_train_batches")


def check_accelerator(accelerator: Any) -> None:
    """Refuse an accelerator that this machine does not have.

    Args:
        accelerator: its name, or what Lightning takes in place of one.

    Raises:
        ValueError: that.
    """
    if not isinstance(accelerator, str):
        return
    known = AcceleratorRegistry.available_accelerators()
    usable = {name for name in known if AcceleratorRegistry[name]["accelerator"].is_available()}
    usable |= {"auto", "gpu"} if usable & {"cuda", "mps"} else {"auto"}
    if accelerator not in usable:
        raise ValueError(
            f"trainer.accelerator ({accelerator}) must be one of {', '.join(sorted(usable))} on this machine; change it"
        )


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse a callback that is there twice, as files that append to the list may have it, and keeps a state.

    Raises:
        ValueError: that; a checkpoint holds one state for both.
    """
    keys = [callback.state_key for callback in callbacks if is_overridden("state_dict", callback, parent=Callback)]
    for key in keys:
        if (number := keys.count(key)) > 1:
            raise ValueError(f"trainer.callbacks ({number} of {key}) must hold one; leave out a --config that adds it")


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies under which training would go wrong, and precisions that ours does not shard in.

    Raises:
        ValueError: any strategy but those for one device, for DDP and ours for FSDP2.
    """
    # Exact types: DeepSpeed's strategy, for one, is a DDPStrategy too.
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy, ShardedStrategy):
        raise ValueError(_other_sharding(type(trainer.strategy).__name__))
    if type(trainer.strategy) is ShardedStrategy:
        _check_sharded_precision(trainer.precision)


def check_optimizer(strategy: str, optimizer: str) -> None:
    """Refuse an optimizer that needs whole matrices where they are sharded.

    Args:
        strategy: name of its class, or Lightning's short one.
        optimizer: `model.optimizer.name`.

    Raises:
        ValueError: Muon under `ShardedStrategy`.
    """
    if strategy == ShardedStrategy.__name__ and optimizer == "muon":
        raise ValueError(
            "model.optimizer.name (muon) must be adamw under ShardedStrategy, since Muon needs whole matrices; change "
            "it, and model.optimizer.lr with it"
        )


def _check_sharded_precision(precision: Any) -> None:
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision ({precision}) must be 32-true or bf16-mixed under ShardedStrategy; change it"
        )


def _other_sharding(name: str) -> str:
    return (
        f"trainer.strategy ({name}) must be auto, ddp or pathmoe.training.sharded_strategy.ShardedStrategy; change it, "
        "or add --config configs/trainer/fsdp2.yaml"
    )


def check_trainer(trainer: Trainer) -> None:
    """Refuse trainer settings under which training would go wrong.

    Raises:
        ValueError: half precision that would need a loss scale, a validation that would never come, or an interval that
            would cut an optimizer step.
    """
    keys = ("precision", "check_val_every_n_epoch", "accumulate_grad_batches")
    intervals = {key: getattr(trainer, key, "a duration") for key in _INTERVALS}  # which Lightning keeps elsewhere
    _check({key: getattr(trainer, key) for key in keys} | intervals)


def check_trainer_settings(settings: Mapping[str, Any]) -> None:
    """Refuse the same, of a trainer that is not built.

    Args:
        settings: the trainer's arguments, as plain types.

    Raises:
        ValueError: as `check_strategy` and `check_trainer`.
    """
    name = strategy_name(settings)
    if name not in ("auto", "SingleDeviceStrategy", "DDPStrategy", "ShardedStrategy") and not name.startswith("ddp"):
        raise ValueError(_other_sharding(name))
    precision = full_precision(settings["precision"])
    if name == "ShardedStrategy":
        _check_sharded_precision(precision)
    _check({**settings, "precision": precision})


def full_precision(precision: str | int | None) -> str:
    """Lightning's full name of a precision that may be given by a short one."""
    return _SHORT_PRECISIONS.get(str(precision), str(precision))


def _check(settings: Mapping[str, Any]) -> None:
    precision = settings["precision"]
    if precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision ({precision}) must be one of {', '.join(_PRECISIONS)}; use bf16-mixed, which needs no "
            "loss scale"
        )
    every_n_epochs = settings["check_val_every_n_epoch"]
    if every_n_epochs is not None and every_n_epochs > 1:
        raise ValueError(
            f"trainer.check_val_every_n_epoch ({every_n_epochs}) must be null or 1, as the stream of blocks has no "
            "epochs to count; set trainer.val_check_interval"
        )
    accumulate = settings["accumulate_grad_batches"]
    for key in _INTERVALS:
        value = settings[key]
        # Neither 1.0, the whole of an endless stream, nor its other spelling None cuts anything; the number 1 does.
        whole = value is None or (isinstance(value, float) and value == 1.0)
        if not whole and accumulate > 1 and (not isinstance(value, int) or value % accumulate):
            raise ValueError(
                f"trainer.{key} ({value}) must be a multiple of trainer.accumulate_grad_batches ({accumulate}), as it "
                "counts micro-batches and may not cut an optimizer step; change one of them"
            )
