"""Checkpoint files that are whole or not there; like sharded folders, they are read without running code."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from pathmoe.training.checked_file import NotWholeError, check_file, write_checked
from pathmoe.training.checkpoint_names import SaveOptions, beside, give_names
from pathmoe.training.sharded_checkpoint import (
    check_folder,
    check_names,
    is_sharded,
    read_rest,
    read_sharded,
    read_weights,
)

_WEIGHTS_OF_A_FORK = ".temp.ckpt"
"""By which Lightning's launchers that fork hand the weights to the first process; no checkpoint."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames; reads with `weights_only=True` whatever is asked for.

    Lightning's own writer stages in the system's temporary folder: from another file system its last move is a copy,
    which a crash can cut.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: SaveOptions | None = None
    ) -> None:
        """Write `checkpoint` to `path`, replacing what is there only once the new file is whole and on disk.

        The strategy that shards does not come by here.
        """
        path, options = Path(path), storage_options or SaveOptions()

        def write(content: dict[str, Any]) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_checked(content, beside(path))
                give_names(beside(path), path, options)
            except BaseException:
                beside(path).unlink(missing_ok=True)
                raise

        if options.background is None:
            write(checkpoint)
        else:
            options.background.start(checkpoint, write)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what is at `path`; see `read_checkpoint`."""
        if Path(path).name == _WEIGHTS_OF_A_FORK:
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any | None = "cpu") -> dict[str, Any]:
    """A checkpoint's plain content, of a file or of a sharded folder, whose tensors come to the CPU.

    Raises:
        ValueError: no such file or folder, or one that is not as it was written or no checkpoint of ours.
    """
    check_checkpoint(path)
    with naming(path):
        if path.is_dir():
            content = read_sharded(path.resolve())
        else:
            content = torch.load(path, map_location=map_location, weights_only=True)
    return _ours(path, content)


def fill_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Read a checkpoint's weights into the tensors of their names, and nothing else, in little more memory.

    Raises:
        ValueError: see `read_checkpoint`; or these are not the weights of its model.
    """
    check_checkpoint(path)
    with naming(path):
        if path.is_dir():
            read_weights(path.resolve(), weights)
            return
        saved = _without_tensors(path)["state_dict"]
        check_names(saved.keys(), weights.keys())
        for name, tensor in weights.items():
            tensor.copy_(saved[name])


def saved_settings(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside weights and optimizer states; a file's are in it too, and read when they are used.

    Raises:
        ValueError: see `read_checkpoint`.
    """
    _must_exist(path)
    with naming(path):
        content = read_rest(path.resolve()) if path.is_dir() else _without_tensors(path)
    return _ours(path, content)


def saved_step(path: Path) -> int:
    """The optimizer step that a checkpoint was written at.

    Raises:
        ValueError: see `read_checkpoint`.
    """
    step: int = saved_settings(path)["global_step"]
    return step


def check_checkpoint(path: Path, part: int = 0, num_parts: int = 1) -> None:
    """Compare a checkpoint with its checksums.

    Args:
        path: a file or a sharded folder.
        part: which of `num_parts` parts of the files of a folder.
        num_parts: those who compare it together.

    Raises:
        ValueError: see `read_checkpoint`.
    """
    _must_exist(path)
    with naming(path):
        if path.is_dir():
            check_folder(path.resolve(), part, num_parts)
        else:
            check_file(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have whatever goes wrong in reading a checkpoint name it on one line.

    Raises:
        ValueError: that.
    """
    try:
        yield
    except Exception as error:
        # Bytes that are no checkpoint lead the unpickler to errors of every kind.
        reason = " ".join([type(error).__name__, *str(error).partition(". ")[0].split()])[:120]
        found = str(error) if isinstance(error, NotWholeError) else f"it can't be read ({reason})"
        raise ValueError(
            f"--ckpt_path ({path}) must be a whole checkpoint, but {found}; use another one of the run, with "
            "--ckpt_path previous or best"
        ) from error


def _must_exist(path: Path) -> None:
    if not path.is_file() and not is_sharded(path):
        raise ValueError(
            f"--ckpt_path ({path}) must be an existing checkpoint, a file or a sharded folder; look in the run folder "
            "for last.ckpt"
        )


def _without_tensors(file: Path) -> Any:
    # Mapped, tensors are read when they are used. What can't be mapped is no checkpoint, as the reader will say.
    return torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)


def _ours(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or "pathmoe" not in content:
        raise ValueError(
            f"--ckpt_path ({path}) must be a checkpoint that this program wrote, but it holds no model.config; "
            "look in the run folder for last.ckpt"
        )
    return content
