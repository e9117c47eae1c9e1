"""Sharded checkpoints: folders of torch.distributed.checkpoint, read without running code.

Those that Lightning's FSDP strategies write are read too; they have no manifest to be compared with.
"""

import pickle
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from pathmoe.training.checked_file import NotWholeError
from pathmoe.training.checkpoint_manifest import MANIFEST_FILE, check_manifest_file, read_manifest

INDEX_FILE = ".metadata"
"""Where in the shards which part of which tensor is; torch.distributed.checkpoint writes it after them."""

REST_FILE = "meta.pt"
"""All but weights and optimizer states."""

MANIFEST_KEY = "has_manifest"
"""In the rest of a checkpoint: whether a folder without a manifest has lost it."""

# FSDP calls the weights "model", its successor "state_dict".
_WEIGHTS = ("state_dict", "model")

# What the index is made of. Nothing here does more than hold what it is given.
_OF_AN_INDEX = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}  # fmt: skip


def is_sharded(path: Path) -> bool:
    """Whether a path is the folder of a sharded checkpoint."""
    return (path / MANIFEST_FILE).is_file() or ((path / INDEX_FILE).is_file() and (path / REST_FILE).is_file())


def check_folder(folder: Path, part: int = 0, num_parts: int = 1) -> None:
    """Compare the files of a folder with its manifest, or every `num_parts`-th of them.

    Raises:
        NotWholeError: a file is missing, or is not as it was written.
    """
    if not _has_manifest(folder):
        return
    for name, expected in list(read_manifest(folder).items())[part::num_parts]:
        check_manifest_file(folder, name, expected)


def read_rest(folder: Path) -> dict[str, Any]:
    """What is neither a weight nor an optimizer state: steps, loops, callbacks, configuration.

    Raises:
        NotWholeError: it is not as the manifest has it.
    """
    if _has_manifest(folder):
        check_manifest_file(folder, REST_FILE, read_manifest(folder)[REST_FILE])
    return _read_rest(folder)


def _has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file() or MANIFEST_KEY in _read_rest(folder)


def _read_rest(folder: Path) -> dict[str, Any]:
    rest: dict[str, Any] = torch.load(folder / REST_FILE, map_location="cpu", weights_only=True)
    return rest


def read_sharded(folder: Path) -> dict[str, Any]:
    """What the same run would have written as one file, on the CPU.

    Raises:
        Exception: of any kind, where the folder is damaged.
    """
    shards: dict[str, Any] = {}
    _load(shards, folder, _NewPlanner())
    weights = next(shards[key] for key in _WEIGHTS if key in shards)
    optimizers = [_numbered(shards[key]) for key in sorted(shards) if key.startswith("optimizer_")]
    return {"state_dict": weights, "optimizer_states": optimizers} | read_rest(folder)


def read_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Read the weights alone into tensors of their names, one part of one after the other.

    Raises:
        NotWholeError: see `check_names`.
    """
    named = _Reader(folder).read_metadata().state_dict_metadata
    key = next(key for key in _WEIGHTS if any(name.startswith(f"{key}.") for name in named))
    check_names({name.removeprefix(f"{key}.") for name in named if name.startswith(f"{key}.")}, weights.keys())
    _load({key: dict(weights)}, folder, _Planner())


def check_names(saved: AbstractSet[str], of_model: AbstractSet[str]) -> None:
    """Compare the names of a checkpoint's weights with those of its model.

    Raises:
        NotWholeError: they differ.
    """
    if odd := saved ^ of_model:
        raise NotWholeError(f"its weights and its model.config disagree on {min(odd)}")


def read_groups(folder: Path, number: int) -> list[dict[str, Any]]:
    """The groups of an optimizer, whose parameters go by name."""
    state: dict[str, Any] = {}
    _load(state, folder, _NewPlanner(keys={f"optimizer_{number}.param_groups"}))
    groups: list[dict[str, Any]] = state[f"optimizer_{number}"]["param_groups"]
    return groups


def load(state: dict[str, Any], folder: Path, group: ProcessGroup) -> None:
    """Read into the tensors and shards of `state`; every rank of `group` calls this, with its own."""
    _load(state, folder, _Planner(), group)


def _load(state: dict[str, Any], folder: Path, planner: DefaultLoadPlanner, group: ProcessGroup | None = None) -> None:
    with cause_raised():
        _load_state_dict(state, _Reader(folder), process_group=group, planner=planner, no_dist=group is None)


@contextmanager
def cause_raised() -> Iterator[None]:
    """Raise what went wrong on the first rank on which something did.

    torch.distributed.checkpoint tells all ranks, but by what is no Exception in Python's sense.
    """
    try:
        yield
    except CheckpointException as error:
        cause, _ = error.failures[min(error.failures)]
        raise cause from error


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state whose parameters go by number in the order of its groups, as torch counts them."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: values for name, values in state["state"].items()}, "param_groups": groups}


class _IndexUnpickler(pickle.Unpickler):
    """Reads an index, and refuses a pickle that names anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in _OF_AN_INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an index")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """torch's own, but for its unpickling of whatever the index names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / INDEX_FILE).open("rb") as file:
            metadata: Metadata = _IndexUnpickler(file).load()
        return metadata


class _Planner(DefaultLoadPlanner):
    """torch's own, but for its unpickling of whatever a value that is no tensor names."""

    def load_bytes(self, read_item: ReadItem, value: IO[bytes]) -> None:
        path = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, path, torch.load(value, weights_only=True))


class _NewPlanner(_Planner, _EmptyStateDictLoadPlanner):
    """The same for a state that is made as the index says."""
