"""Sharded training saved to a checkpoint folder, and loaded into any number of ranks; all of them together.

Nothing here knows of a mesh: torch.distributed.checkpoint asks each tensor where its shards are.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.utils import _DistWrapper
from torch.optim import Optimizer

from pathmoe.config import PathMoEConfig
from pathmoe.training.checked_file import write_checked
from pathmoe.training.checkpoint_io import check_checkpoint, naming, saved_settings
from pathmoe.training.checkpoint_manifest import FileSum, sum_file, write_manifest
from pathmoe.training.checkpoint_names import SaveOptions, beside, give_names
from pathmoe.training.compatibility import check_architecture
from pathmoe.training.errors import OnAllRanksError
from pathmoe.training.provenance import installed_version
from pathmoe.training.settings import check_groups
from pathmoe.training.sharded_checkpoint import (
    INDEX_FILE,
    MANIFEST_KEY,
    REST_FILE,
    cause_raised,
    check_folder,
    load,
    read_groups,
    read_rest,
)

_PACKAGES = ("pathmoe", "torch", "lightning")


def save_state(checkpoint: dict[str, Any], path: Path, options: SaveOptions, group: ProcessGroup) -> None:
    """Write a checkpoint folder, replacing what is under its name only once the new one is whole and on disk.

    Each rank writes its shards and reads them again for their checksums; then the first one writes the rest, the
    manifest and the names.

    Args:
        checkpoint: of Lightning, with this rank's shards.
        path: the name; on a disk that all ranks share.
        options: other names, and whether training goes on meanwhile.
        group: all ranks, with a backend for the CPU, and for nothing else: it is used beside training.

    Raises:
        OnAllRanksError: a rank can't write; where the save goes on beside training, `options.background` raises it.
    """
    shards = {"state_dict": checkpoint.pop("state_dict")}
    shards |= {f"optimizer_{i}": state for i, state in enumerate(checkpoint.pop("optimizer_states", []))}

    def write(content: tuple[dict[str, Any], dict[str, Any]]) -> None:
        _write(*content, path, options, _all(group))

    if options.background is None:
        write((shards, checkpoint))
    else:
        options.background.start((shards, checkpoint), write)


def _all(group: ProcessGroup) -> _DistWrapper:
    return _DistWrapper(group, use_dist=True, coordinator_rank=0)


def _write(shards: dict[str, Any], rest: dict[str, Any], path: Path, options: SaveOptions, ranks: _DistWrapper) -> None:
    new = beside(path)

    def finish(sums: Sequence[Mapping[str, FileSum]]) -> None:
        files = {name: file for of_rank in sums for name, file in of_rank.items()}
        if away := [name for name in files if not (new / name).is_file()]:
            raise OSError(None, f"{away[0]} of another node is not there, as it must lie on a disk that all share")
        write_checked(rest | {MANIFEST_KEY: True}, new / REST_FILE)
        files |= {name: sum_file(new / name) for name in (INDEX_FILE, REST_FILE)}
        versions = {package: installed_version(package) for package in _PACKAGES}
        facts = {"step": rest["global_step"], "world_size": ranks.get_world_size(), "versions": versions}
        write_manifest(new, files, facts)
        give_names(new, path, options)

    try:
        with cause_raised():
            ranks.broadcast("clear", lambda: _make_empty(new))
            save(shards, storage_writer=FileSystemWriter(new), process_group=ranks.group)
            ranks.all_reduce("finish", lambda: _sums(new, ranks.rank), finish)
    except BaseException as error:
        if ranks.is_coordinator:
            shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError):
            raise OnAllRanksError(
                f"{path} can't be replaced ({error.strerror}) and is as it was; make room, or choose another --run_dir"
            ) from error
        raise


def _make_empty(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.unlink(missing_ok=True)
    folder.mkdir(parents=True)


def _sums(folder: Path, rank: int) -> dict[str, FileSum]:
    return {file.name: sum_file(file) for file in folder.glob(f"__{rank}_*.distcp")}


def load_state(
    path: Path, module: LightningModule, config: PathMoEConfig, optimizers: Sequence[Optimizer], group: ProcessGroup
) -> dict[str, Any]:
    """Load a checkpoint, a file or a folder of any number of ranks, into the shards of a module and its optimizers.

    It is compared with its checksums before anything is loaded; each rank takes a share of a folder's files.

    Args:
        path: the checkpoint.
        module: sharded.
        config: of its model.
        optimizers: its optimizers; none to validate.
        group: all ranks, with a backend for the CPU.

    Returns:
        What is neither a weight nor an optimizer state.

    Raises:
        OnAllRanksError: it is damaged, or of another architecture or of other optimizers.
    """
    load_all = _load_folder if path.is_dir() else _load_file
    try:
        return load_all(path, module, config, optimizers, group)
    except ValueError as error:
        raise OnAllRanksError(str(error)) from error


def _load_folder(
    path: Path, module: LightningModule, config: PathMoEConfig, optimizers: Sequence[Optimizer], group: ProcessGroup
) -> dict[str, Any]:
    ranks = _all(group)
    # Training elsewhere may give the name to another folder meanwhile.
    folder = ranks.broadcast("find", path.resolve)
    with naming(path):
        with cause_raised():
            ranks.all_gather("check", lambda: check_folder(folder, ranks.rank, ranks.get_world_size()))
        rest = read_rest(folder)
        groups = [read_groups(folder, number) for number in range(len(optimizers))]
    _check_fit(rest, groups, config, optimizers)
    with naming(path):
        weights = get_model_state_dict(module)
        load({"state_dict": weights}, folder, group)
        module.load_state_dict(weights)
        for number, optimizer in enumerate(optimizers):
            state = get_optimizer_state_dict(module, optimizer)
            load({f"optimizer_{number}": state}, folder, group)
            set_optimizer_state_dict(module, optimizer, state)
    return rest


def _load_file(
    path: Path, module: LightningModule, config: PathMoEConfig, optimizers: Sequence[Optimizer], group: ProcessGroup
) -> dict[str, Any]:
    """Each rank takes its shards out of the file; Lightning would count parameters in another order than torch does."""
    with cause_raised():
        _all(group).broadcast("check", lambda: check_checkpoint(path))
    content = saved_settings(path)
    weights, states = content.pop("state_dict"), content.pop("optimizer_states", [])[: len(optimizers)]
    _check_fit(content, [state["param_groups"] for state in states], config, optimizers)
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(module, weights, options=whole)
    names = {parameter: name for name, parameter in module.named_parameters()}
    for optimizer, state in zip(optimizers, states, strict=True):
        named = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        set_optimizer_state_dict(module, optimizer, _by_name(state, named), options=whole)
    return content


def _by_name(state: dict[str, Any], names: Sequence[list[str]]) -> dict[str, Any]:
    """An optimizer's state as torch saves it, but with the names of parameters, group by group, for their numbers."""
    pairs = zip(state["param_groups"], names, strict=True)
    name_of = {number: name for group, named in pairs for number, name in zip(group["params"], named, strict=True)}
    groups = [group | {"params": named} for group, named in zip(state["param_groups"], names, strict=True)]
    return {"state": {name_of[number]: values for number, values in state["state"].items()}, "param_groups": groups}


def _check_fit(
    rest: Mapping[str, Any],
    saved_groups: Sequence[list[dict[str, Any]]],
    config: PathMoEConfig,
    optimizers: Sequence[Optimizer],
) -> None:
    check_architecture(rest.get("pathmoe"), config)
    for groups, optimizer in zip(saved_groups, optimizers, strict=True):
        check_groups(groups, optimizer)
