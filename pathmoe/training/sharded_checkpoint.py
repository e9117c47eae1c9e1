"""Sharded checkpoints: folders that Lightning's FSDP strategies write, read on one device and without running code."""

import pickle
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, Metadata
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

_INDEX_FILE = ".metadata"
"""Where in the shards which part of which tensor is; torch.distributed.checkpoint writes it last."""

_REST_FILE = "meta.pt"
"""All but weights and optimizer states; Lightning writes it after the shards and their index."""

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
    """Whether a path is the folder of a sharded checkpoint that was written to its end."""
    return (path / _INDEX_FILE).is_file() and (path / _REST_FILE).is_file()


def read_sharded(folder: Path) -> dict[str, Any]:
    """What the same run would have written as one file, on the CPU.

    Raises:
        Exception: of any kind, where the folder is damaged.
    """
    shards: dict[str, Any] = {}
    try:
        _load_state_dict(shards, storage_reader=_Reader(folder), planner=_Planner(), no_dist=True)
    except CheckpointException as error:
        # No Exception in Python's sense; what went wrong is inside.
        ((cause, _),) = error.failures.values()
        raise cause from None
    # FSDP calls the weights "model", its successor "state_dict".
    weights = shards["state_dict"] if "state_dict" in shards else shards["model"]
    optimizers = [_numbered(shards[key]) for key in sorted(shards) if key.startswith("optimizer_")]
    return {"state_dict": weights, "optimizer_states": optimizers} | read_rest(folder)


def read_rest(folder: Path) -> dict[str, Any]:
    """What is neither a weight nor an optimizer state: steps, loops, callbacks, configuration."""
    rest: dict[str, Any] = torch.load(folder / _REST_FILE, map_location="cpu", weights_only=True)
    return rest


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
        with (Path(self.path) / _INDEX_FILE).open("rb") as file:
            metadata: Metadata = _IndexUnpickler(file).load()
        return metadata


class _Planner(_EmptyStateDictLoadPlanner):
    """torch's own, but for its unpickling of whatever a value that is no tensor names."""

    def load_bytes(self, read_item: ReadItem, value: IO[bytes]) -> None:
        path = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, path, torch.load(value, weights_only=True))
