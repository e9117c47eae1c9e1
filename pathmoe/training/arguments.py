"""Command-line arguments before they are parsed: shipped configs by name, and the saved config of a checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path

from pathmoe.training.config_files import SAID_ONCE, find_config
from pathmoe.training.run_folder import (
    CHECKPOINT_NAMES,
    default_run_folder,
    has_checkpoint,
    newest_run_folder,
    resolve_checkpoint,
    saved_config,
)
from pathmoe.training.run_record import hash_files, read_record

_OF_THE_RUN = ("model", "data", "seed_everything")
_OF_THE_MACHINE = ("data.cache_dir", "data.num_workers")


def option_values(arguments: Sequence[str], *options: str) -> list[str]:
    """The values that an option has on the command line, as `--option value` and `--option=value`."""
    values = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in options:
            values += [value] if equals else list(arguments[position + 1 : position + 2])
    return values


def expand(arguments: Sequence[str]) -> list[str]:
    """Arguments with configs found by name and, with `--ckpt_path`, the configuration saved beside the checkpoint.

    The saved configuration comes first, so that flags and files given beside it win. Files that are in it already, and
    have not changed since, are left out: flags may have won over them. `--run_dir` becomes explicit. Without a
    checkpoint to go on from, `fit --ckpt_path last` starts anew.

    Args:
        arguments: the subcommand and what follows it.

    Raises:
        ValueError: a config or a checkpoint that is not there; an option that follows another one.
    """
    for key, source in SAID_ONCE.items():
        for value in option_values(arguments, f"--{key}"):
            raise ValueError(f"--{key} ({value}) must not be given, since it follows {source}; give --{source}")
    command, rest = arguments[0], _with_found_configs(arguments[1:])
    configs = option_values(rest, "--config", "-c")
    ckpt_path = next(iter(option_values(rest, "--ckpt_path")[-1:]), None)
    run_folder = _run_folder(rest, configs, ckpt_path)
    if ckpt_path is None:
        return [command, *rest, "--run_dir", str(run_folder)]
    if command == "fit" and ckpt_path == "last" and configs and not has_checkpoint(run_folder):
        rest = _without(rest, "--ckpt_path")
        return [command, *rest, "--run_dir", str(run_folder)]
    checkpoint = resolve_checkpoint(ckpt_path, run_folder)
    rest = [*_without(rest, "--ckpt_path"), "--ckpt_path", str(checkpoint)]
    recorded = read_record(checkpoint.parent).config_files.values()
    for file, digest in hash_files(filter(os.path.isfile, configs)).items():
        if digest in recorded:
            rest = _without(rest, "--config", "-c", value=file)
    if not option_values(rest, "--run_dir"):
        rest += ["--run_dir", str(checkpoint.parent)]
    return [command, "--config", str(saved_config(checkpoint)), *rest]


def _run_folder(arguments: Sequence[str], configs: Sequence[str], ckpt_path: str | None) -> Path:
    explicit = option_values(arguments, "--run_dir")
    if explicit:
        return Path(explicit[-1])
    if ckpt_path in CHECKPOINT_NAMES and not configs:
        return newest_run_folder(ckpt_path)
    return default_run_folder(configs, _overrides(arguments))


def _overrides(arguments: Sequence[str]) -> dict[str, str]:
    """The flags that say what is trained, with their values: a run with others is another run.

    Those of the trainer say how long and where, which may change while a run goes on.
    """
    overrides = {}
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        key = option.removeprefix("--")
        if option != key and key.split(".")[0] in _OF_THE_RUN and key not in _OF_THE_MACHINE:
            overrides[key] = value if equals else "".join(arguments[position + 1 : position + 2])
    return overrides


def _with_found_configs(arguments: Sequence[str]) -> list[str]:
    expanded = list(arguments)
    for position, argument in enumerate(expanded):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            if equals:
                expanded[position] = f"{name}={find_config(value)}"
            elif position + 1 < len(expanded):
                expanded[position + 1] = find_config(expanded[position + 1])
    return expanded


def _without(arguments: Sequence[str], *options: str, value: str | None = None) -> list[str]:
    """Arguments without an option, or only without its occurrences that have this value."""
    kept, position = [], 0
    while position < len(arguments):
        name, equals, given = arguments[position].partition("=")
        given = given if equals else "".join(arguments[position + 1 : position + 2])
        drop = name in options and value in (None, given)
        kept += [] if drop else [arguments[position]]
        position += 2 if drop and not equals else 1
    return kept
