"""The commands `prepare` and `verify`, with the keys and the configurations of `fit`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from datasets import disable_progress_bars
from jsonargparse import Namespace

from pathmoe.config import PathMoEConfig
from pathmoe.data.datamodule import TokenDataModule
from pathmoe.data.estimate import Measured, estimate_lines, measure_source
from pathmoe.data.parallel import run_jobs
from pathmoe.data.preparation import Progress, find_prepared, pointer_file, prepare
from pathmoe.data.shards import find_fault, read_shards
from pathmoe.data.tokenizer import TRAIN_BPE
from pathmoe.training.config_files import SAID_ONCE, find_config, read_yaml
from pathmoe.training.errors import OneLineParser

_COMMANDS = {
    "prepare": "Tokenise and pack the data of a run, side by side; one that was killed goes on where it was.",
    "verify": "Read all that was prepared for a run, and compare it with the hashes of when it was written.",
}
_NOT_OF_PREPARATION = ("vocab_size", "seed", "streaming")
"""Arguments of the data that are set elsewhere, or that prepared data is the opposite of."""


def run(arguments: Sequence[str]) -> None:
    """Run the command that the arguments begin with. Raises ValueError about what the user gave."""
    disable_progress_bars()
    command = arguments[0] if arguments else ""
    if command not in _COMMANDS:
        raise ValueError(f"the command ({command}) must be one of {', '.join(_COMMANDS)}; give it first")
    settings = _parser(command).parse_args(_with_configs(arguments[1:]))
    if settings.num_workers < 1:
        raise ValueError(f"--num_workers ({settings.num_workers}) must be at least 1; raise it")
    data = _data(settings)
    if command == "verify":
        print(_verify(data, settings.num_workers))
    elif settings.estimate is not None:
        _estimate(data, settings.estimate, settings.num_workers)
    else:
        _prepare(data, settings.num_workers)


def _parser(command: str) -> OneLineParser:
    parser = OneLineParser(prog=f"python -m pathmoe.data {command}", description=_COMMANDS[command])
    parser.add_argument("--config", action="config", help="A configuration of fit, of which the data counts.")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1, help="Processes.")
    if command == "prepare":
        help_text = "Megabytes at the beginning of the source to measure on, and prepare nothing."
        parser.add_argument("--estimate", type=float, default=None, help=help_text)
    parser.add_argument("--model.config.vocab_size", type=int | None, default=None, help="As fit takes it.")
    parser.add_class_arguments(TokenDataModule, "data", skip=set(_NOT_OF_PREPARATION))
    return parser


def _with_configs(arguments: Sequence[str]) -> list[str]:
    """Arguments with the part of each configuration that the commands take in the place of its name."""
    words = list(arguments)
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--config" and equals:
            words[position] = f"--config={_data_section(value)}"
        elif option == "--config" and position + 1 < len(words):
            words[position + 1] = _data_section(words[position + 1])
    for key in ("data.vocab_size", "data.seed"):
        if any(word.partition("=")[0] == f"--{key}" for word in words):
            raise ValueError(f"--{key} must not be given, since it follows {SAID_ONCE[key]}; give --{SAID_ONCE[key]}")
    return words


def _data_section(name: str) -> str:
    """What of a configuration file, or a shipped one by its name, says what is prepared, as JSON."""
    content = read_yaml(Path(find_config(name)))
    data = {key: value for key, value in content.get("data", {}).items() if key not in _NOT_OF_PREPARATION}
    vocab_size = content.get("model", {}).get("config", {}).get("vocab_size")
    return json.dumps(
        {"data": data} | ({} if vocab_size is None else {"model": {"config": {"vocab_size": vocab_size}}})
    )


def _data(settings: Namespace) -> TokenDataModule:
    vocab_size = settings.model.config.vocab_size
    if vocab_size is None and settings.data.tokenizer == TRAIN_BPE:
        vocab_size = PathMoEConfig().vocab_size  # as fit does
    return TokenDataModule(**settings.data.as_dict(), vocab_size=vocab_size)


def _prepare(data: TokenDataModule, num_workers: int) -> None:
    measured: list[Measured] = []

    def tell(progress: Progress) -> None:
        measured[:] = [Measured.of_shards(progress.shards, progress.seconds, num_workers)]
        print(f"  {progress.shards[-1].name}, {progress.number} of {progress.of}: {measured[0].rates()}", flush=True)

    print(f"reading the source through, to hash and split it, in {data.cache_dir}", flush=True)
    folders = prepare(data.recipes, data.cache_dir, num_workers, mend=True, on_shard=tell)
    data.setup("validate")  # which does not look at the batches
    print(data.manifest.summary())
    for folder in folders:
        print(f"prepared in {folder}; fit finds it with the same configuration and data.streaming false")
    if measured:
        print("\n".join(estimate_lines(measured[0])))


def _estimate(data: TokenDataModule, megabytes: float, num_workers: int) -> None:
    if not megabytes > 0:
        raise ValueError(f"--estimate ({megabytes}) must be more than 0 megabytes; raise it")
    for recipe in data.recipes:
        measured, total_tokens = measure_source(recipe, round(megabytes * 1e6), num_workers)
        print(f"{recipe.source.source}:")
        print("\n".join(estimate_lines(measured, total_tokens)))


def _verify(data: TokenDataModule, num_workers: int) -> str:
    """What was found, in a line. Raises ValueError naming the files that are not what was prepared."""
    if not pointer_file(data.recipes, data.cache_dir).exists():
        raise ValueError(
            f"data.cache_dir ({data.cache_dir}) holds nothing prepared with this configuration; prepare it"
        )
    jobs = [(folder, s) for folder in find_prepared(data.recipes, data.cache_dir) for s in read_shards(folder)]
    faults = sorted(fault for fault in run_jobs(find_fault, jobs, num_workers) if fault)
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(jobs)} files are not what was prepared ({'; '.join(faults)}); remove those "
            "that are there, and prepare again with the same configuration, which makes them again"
        )
    return f"{len(jobs)} files, {sum(shard.size for _, shard in jobs):,} bytes: all as they were written"
