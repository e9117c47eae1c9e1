"""A run opened again from its folder: model, data, and the summary that it ended with."""

import json
from pathlib import Path
from typing import Any

from pathmoe.data import TokenDataModule
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.config_files import read_yaml
from pathmoe.training.export import load_model
from pathmoe.training.run_folder import SUMMARY_FILE, resolve_checkpoint, saved_config


def open_run(run: str) -> tuple[PathMoEForCausalLM, TokenDataModule]:
    """The last model of a run, in evaluation mode on the CPU, and its data, set up.

    Args:
        run: run folder, checkpoint file, or `last`, as `--ckpt_path` takes it.

    Raises:
        ValueError: no run is there, or its checkpoint can't be read.
    """
    checkpoint = resolve_checkpoint(run, None)
    resolved = read_yaml(saved_config(checkpoint))
    model = load_model(checkpoint)
    data = TokenDataModule(
        **resolved["data"] | {"vocab_size": model.config.vocab_size, "seed": resolved["seed_everything"]}
    )
    data.prepare_data()
    data.setup("validate")
    return model, data


def read_summary(run: str, needed: str) -> dict[str, Any]:
    """The figures that a run ended with.

    Args:
        run: as for `open_run`.
        needed: a figure that must be among them.

    Raises:
        ValueError: no run is there, it has not ended, or it lacks that figure.
    """
    file = resolve_checkpoint(run, None).parent / SUMMARY_FILE
    if not file.is_file():
        raise ValueError(
            f"{file} must be there, which a run writes at its end; finish the run with fit --ckpt_path {file.parent}, "
            "with pathmoe_eval.closing.ClosingReport among trainer.callbacks"
        )
    summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if needed not in summary:
        raise ValueError(
            f"{file} must hold {needed}, which takes a validation over the whole split; go on with or repeat the run "
            "with trainer.limit_val_batches 1.0"
        )
    return summary


def run_name(run: str) -> str:
    """The name of a run's folder, for titles."""
    return Path(resolve_checkpoint(run, None)).parent.name
