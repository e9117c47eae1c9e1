"""The command line: LightningCLI over our module and data, with run folders, saved configs and one-line errors."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from datasets import disable_progress_bars
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from transformers.utils import logging as transformers_logging

from pathmoe.config import PathMoEConfig
from pathmoe.data import TokenDataModule
from pathmoe.training.arguments import expand
from pathmoe.training.background_saves import BackgroundSaves
from pathmoe.training.best_checkpoint import BestCheckpoint
from pathmoe.training.checkpoint_io import AtomicCheckpointIO, saved_step
from pathmoe.training.config_files import SAID_ONCE
from pathmoe.training.dry_run import dry_run
from pathmoe.training.errors import OneLineParser, with_one_line_errors
from pathmoe.training.export import export_command
from pathmoe.training.heart import Heart
from pathmoe.training.last_checkpoint import LastCheckpoint
from pathmoe.training.lost_rank import LostRank
from pathmoe.training.micro_batches import settle_micro_batches
from pathmoe.training.mixture_progress import MixtureProgress
from pathmoe.training.module import PathMoEModule
from pathmoe.training.plan import PlanConfig
from pathmoe.training.progress import ProgressBar
from pathmoe.training.provenance import installed_version
from pathmoe.training.rank_monitor import RankMonitor
from pathmoe.training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, refuse_another_run
from pathmoe.training.same_start import SameStart
from pathmoe.training.save_run import SaveRun
from pathmoe.training.slurm import slurm_plugins
from pathmoe.training.speed import SpeedMonitor
from pathmoe.training.trainer_requirements import check_accelerator, check_callbacks, check_strategy
from pathmoe.training.validation_figures import table, validation_rows

set_parsing_settings(docstring_parse_attribute_docstrings=True, subclasses_disabled=[PathMoEConfig])

SUBCOMMANDS = {
    "fit": "train, or go on with a run: --ckpt_path last",
    "validate": "measure a checkpoint on its validation data: --ckpt_path P",
    "export": "write a checkpoint as a Hugging Face folder: --ckpt_path P --out DIR",
}

# What belongs to one call and not to the run.
_OF_ONE_CALL = ("ckpt_path", "dry_run", "plan", "config", "run_dir")


class PathMoECLI(LightningCLI):
    """`fit` and `validate`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of ours, and what is said once and used twice."""
        parser.add_argument(
            "--ckpt_path",
            type=str,
            default=None,
            help="A checkpoint with its settings: its path, its run's folder, or last, previous or best of the run.",
        )
        parser.add_argument(
            "--run_dir", type=str, default="runs/run", help="Folder of the run; from configs and flags."
        )
        parser.add_argument("--dry_run", action="store_true", help="Print what the run would be, and exit.")
        parser.add_class_arguments(PlanConfig, "plan")
        parser.add_argument(
            "--checkpoint_every_n_steps", type=int, default=1000, help="Optimizer steps between checkpoints."
        )
        parser.add_argument(
            "--checkpoint_keep_every_n_steps",
            type=int | None,
            default=None,
            help="Optimizer steps between checkpoints that are kept for good, as step=N.ckpt.",
        )
        parser.add_argument(
            "--checkpoint_async",
            type=bool,
            default=False,
            help="Write checkpoints while training goes on, from a copy in CPU memory.",
        )
        parser.add_argument(
            "--peak_tflops",
            type=float | None,
            default=None,
            help="What one device does at most in the run's precision, in dense products: for utilisation and plans.",
        )
        parser.add_argument(
            "--validate_every_n_steps",
            type=int | None,
            default=None,
            help="Optimizer steps between validations; trainer.val_check_interval counts micro-batches.",
        )
        for key, source in SAID_ONCE.items():
            parser.link_arguments(source, key, compute_fn=int)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one that was asked for, since setting up the options of each takes a while."""
        ours = {"ckpt_path", "weights_only"} | ({"verbose"} if sys.argv[1] == "validate" else set())
        return {sys.argv[1]: LightningCLI.subcommands()[sys.argv[1]] | ours}

    def _parse_ckpt_path(self) -> None:
        # LightningCLI would let hyperparameters in the checkpoint win over flags; ours lie beside it, and flags win.
        return

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        return Path(self._get(self.config, "run_dir"))

    def resolved_config(self) -> dict[str, Any]:
        """The configuration of this run after all files and flags, as plain types."""
        text = self.parser.dump(self.config, skip_unset=False, skip_link_targets=True, format="yaml")
        resolved = yaml.safe_load(text)[self.subcommand]
        return {key: value for key, value in resolved.items() if key not in _OF_ONE_CALL}

    def before_instantiate_classes(self) -> None:
        """Settle the folder, or print the dry run."""
        settings = self.config[self.subcommand]
        if self.subcommand == "fit" and not settings.config and settings.trainer.max_steps < 1:
            raise ValueError("--config (null) must name what to train; give it, e.g. --config tiny --config path_b4")
        accumulate = settings.trainer.accumulate_grad_batches
        if accumulate < 1:
            raise ValueError(f"trainer.accumulate_grad_batches ({accumulate}) must be at least 1; raise it")
        plan = PlanConfig(**settings.plan.as_dict())
        if settings.dry_run:
            if rank_zero_only.rank == 0:
                dry_run(self.resolved_config(), plan)
            raise SystemExit(0)
        if plan != PlanConfig():
            raise ValueError("--plan must come with --dry_run, which is what reads it; add that")
        if self.subcommand == "validate" and settings.ckpt_path is None:
            raise ValueError("--ckpt_path (null) must name what to validate: a checkpoint, a run folder, last or best")
        if self.subcommand == "fit" and rank_zero_only.rank == 0:
            refuse_another_run(self.run_folder, settings.ckpt_path)
        self._saved = self.resolved_config()
        settings.trainer.default_root_dir = str(self.run_folder)
        ckpt_path = settings.ckpt_path
        if self.subcommand == "validate" or (ckpt_path and saved_step(Path(ckpt_path)) >= settings.trainer.max_steps):
            # There is nothing to log, and a logger would make a version or a run of its own for it.
            settings.trainer.logger = False
        loggers = settings.trainer.logger if isinstance(settings.trainer.logger, list) else [settings.trainer.logger]
        for logger in loggers:
            if hasattr(logger, "init_args") and "save_dir" in logger.init_args:
                logger.init_args.save_dir = str(self.run_folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with what every run has: logger, progress, speed, checkpoints and what lies beside them."""
        if self._get(self.config, "trainer").logger in (None, True):
            kwargs["logger"] = CSVLogger(self.run_folder, name="csv", flush_logs_every_n_steps=10)
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list) -> Trainer:
        speed = SpeedMonitor(self._get(self.config, "peak_tflops"))
        callbacks = [*callbacks, SameStart(), speed, RankMonitor(speed)]
        if self.subcommand == "fit":
            callbacks.append(SaveRun(self.run_folder, self._saved, self._get(self.config, "config") or ()))
            # Hearts begin once the folder is this run's own, and end after others were asked for theirs.
            callbacks += [LostRank(self.run_folder), Heart(self.run_folder), MixtureProgress()]
        if config.get("enable_progress_bar") is not False:
            callbacks.append(ProgressBar())
        if self.subcommand == "fit":
            callbacks += self._checkpoints()
        check_accelerator(config.get("accelerator", "auto"))
        given = config.get("callbacks") or []
        check_callbacks([*(given if isinstance(given, list) else [given]), *callbacks])
        plugins = config.get("plugins") or []
        given = plugins if isinstance(plugins, list) else [plugins]
        config["plugins"] = [*given, *slurm_plugins(), AtomicCheckpointIO()]
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
        except ValueError as error:
            raise ValueError(f"trainer: {error}") from error
        # Here, and not only when the module is set up, so that one process says it and no other is started.
        check_strategy(trainer)
        if self.subcommand == "fit":
            data, every_n_steps = (self._get(self.config, key) for key in ("data", "validate_every_n_steps"))
            settle_micro_batches(trainer, data.micro_batch_size, data.global_batch_size, every_n_steps)
        return trainer

    def _checkpoints(self) -> list[Callback]:
        every, keep, is_async = (
            self._get(self.config, f"checkpoint_{name}") for name in ("every_n_steps", "keep_every_n_steps", "async")
        )
        # One for both, so that one of them at a time is copied and written.
        background = BackgroundSaves() if is_async else None
        best = BestCheckpoint(self.run_folder / BEST_CHECKPOINT, background)
        return [best, LastCheckpoint(self.run_folder / LAST_CHECKPOINT, every, keep, background)]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # A checkpoint is never trusted with code.
        ours = {"ckpt_path": self._get(self.config, "ckpt_path"), "weights_only": True}
        if subcommand == "validate":
            ours["verbose"] = False
        return super()._prepare_subcommand_kwargs(subcommand) | ours

    def after_validate(self) -> None:
        """Print what was measured, of which checkpoint."""
        if self.trainer.is_global_zero:
            checkpoint = Path(self._get(self.config, "ckpt_path"))
            rows = validation_rows({name: float(value) for name, value in self.trainer.callback_metrics.items()})
            print(f"validated {checkpoint} (step {saved_step(checkpoint)})\n\n{table(rows)}\n")


def _quieten() -> None:
    """Leave the terminal to the progress bar: no hardware tips, no bars of writers, no news for Lightning's authors."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # Validation needs no callbacks of training.
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")


def _help() -> str:
    lines = [f"  {name:<10}{what}" for name, what in SUBCOMMANDS.items()]
    program = Path(sys.argv[0]).name
    return "\n".join(
        [
            f"usage: {program} {{{','.join(SUBCOMMANDS)}}} [options]",
            "",
            "Train, validate and export path-constrained Mixture-of-Experts language models.",
            "",
            *lines,
            "",
            f"The options of each: {program} fit --help",
            f"The smallest run:    {program} fit --config tiny --config path_b4",
            f"The version:         {program} --version",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; `pathmoe` and `train.py` are this."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with_one_line_errors(lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    subcommand = arguments[0] if arguments else ""
    if subcommand in ("", "-h", "--help"):
        print(_help())
        if subcommand:
            return
        raise ValueError(f"a subcommand must be given: one of {', '.join(SUBCOMMANDS)}")
    if subcommand == "--version":
        print(f"pathmoe {installed_version('pathmoe') or 'of a folder that is not installed'}")
        return
    if subcommand not in SUBCOMMANDS:
        raise ValueError(f"the subcommand ({subcommand}) must be one of {', '.join(SUBCOMMANDS)}; give it first")
    _quieten()
    if subcommand == "export":
        export_command(arguments[1:])
        return
    # LightningCLI and the ranks that its strategies start read the command line themselves.
    sys.argv[1:] = expand(arguments)
    PathMoECLI(
        PathMoEModule,
        TokenDataModule,
        save_config_callback=None,
        seed_everything_default=0,
        # The stream of blocks has no end; steps bound a run.
        trainer_defaults={"max_epochs": -1},
        parser_class=OneLineParser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )
