"""A run opened again from its folder: model and data."""

from pathlib import Path

from pathmoe.data import TokenDataModule
from pathmoe.model import PathMoEForCausalLM
from pathmoe.training.config_files import read_yaml
from pathmoe.training.export import load_model
from pathmoe.training.run_folder import resolve_checkpoint, saved_config


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


def run_name(run: str) -> str:
    """The name of a run's folder, for titles."""
    return Path(resolve_checkpoint(run, None)).parent.name
