"""The shipped tiny run as the benchmarks take it: its model, optimizer, schedule and batch."""

from typing import NamedTuple

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.config_files import config_folder, read_yaml
from pathmoe.training.optim import OptimizerConfig
from pathmoe.training.schedule import ScheduleConfig


class TinyRun(NamedTuple):
    """What `fit --config tiny --config ROUTER` trains."""

    config: PathMoEConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    max_steps: int
    """Optimizer steps, which the schedule counts."""
    gradient_clip_val: float
    data: TokenDataModule
    """Prepared; a micro-batch holds a whole optimizer step's blocks."""


def tiny_run(router: str = "path_b4") -> TinyRun:
    """The settings of `configs/tiny.yaml` with those of `configs/routers/<router>.yaml`, and its data."""
    tiny, routed = (read_yaml(config_folder() / name) for name in ("tiny.yaml", f"routers/{router}.yaml"))
    model, data, trainer = tiny["model"], dict(tiny["data"]), tiny["trainer"]
    config = PathMoEConfig(**model["config"] | routed["model"]["config"])
    data["micro_batch_size"] *= trainer.get("accumulate_grad_batches", 1)
    module = TokenDataModule(**data, vocab_size=config.vocab_size, seed=tiny["seed_everything"])
    module.prepare_data()
    module.setup("fit")
    return TinyRun(
        config=config,
        optimizer=OptimizerConfig(**model["optimizer"]),
        schedule=ScheduleConfig(**model["schedule"]),
        max_steps=trainer["max_steps"],
        gradient_clip_val=trainer["gradient_clip_val"],
        data=module,
    )
