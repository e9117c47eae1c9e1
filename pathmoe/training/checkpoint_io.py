"""Checkpoint files that are whole or not there; like sharded folders, they are read without running code."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from pathmoe.training.sharded_checkpoint import is_sharded, read_rest, read_sharded


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames; reads with `weights_only=True` whatever is asked for.

    Lightning's own writer stages in the system's temporary folder: from another file system its last move is a copy,
    which a crash can cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, replacing what is there only once the new file is whole and on disk.

        Under the strategies that shard, Lightning comes by here only for a checkpoint of one file.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One name, so that what a killed process left is overwritten by the next.
        beside = path.with_name(f".{path.name}.partial")
        try:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.is_dir():
                # A file can't replace a folder in one step; a kill right here leaves both under these names.
                shards = path.with_name(f".{path.name}.shards")
                shutil.rmtree(shards, ignore_errors=True)
                os.replace(path, shards)
                os.replace(beside, path)
                shutil.rmtree(shards)
            else:
                os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file at `path`; see `read_checkpoint`."""
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """A checkpoint's plain content, of a file or of a sharded folder, whose tensors come to the CPU.

    Raises:
        ValueError: no such file or folder, or one that is truncated or no checkpoint of ours.
    """
    if path.is_dir():
        return _read(path, read_sharded)
    return _read(path, lambda file: torch.load(file, map_location=map_location, weights_only=True))


def saved_step(path: Path) -> int:
    """The optimizer step that a checkpoint was written at, without reading its tensors.

    Raises:
        ValueError: see `read_checkpoint`.
    """
    step: int = _read(path, read_rest if path.is_dir() else _without_tensors)["global_step"]
    return step


def _without_tensors(file: Path) -> Any:
    # Mapped, tensors are read when they are used. What can't be mapped is no checkpoint, as the reader will say.
    return torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)


def _read(path: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    if not path.is_file() and not is_sharded(path):
        raise ValueError(
            f"--ckpt_path ({path}) must be an existing checkpoint, a file or a sharded folder; look in the run folder "
            "for last.ckpt"
        )
    try:
        content = read(path)
    except Exception as error:
        # Bytes that are no checkpoint lead the unpickler to errors of every kind.
        reason = " ".join([type(error).__name__, *str(error).partition(". ")[0].split()])[:120]
        raise ValueError(
            f"--ckpt_path ({path}) must be a whole checkpoint, but it can't be read ({reason}); "
            "use another one of the run, such as best.ckpt"
        ) from error
    if not isinstance(content, dict) or "pathmoe" not in content:
        raise ValueError(
            f"--ckpt_path ({path}) must be a checkpoint that this program wrote, but it holds no model.config; "
            "look in the run folder for last.ckpt"
        )
    return content
