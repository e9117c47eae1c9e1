"""Checkpoint files that are whole or not there, and that load no code."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames; reads with `weights_only=True` whatever is asked for.

    Lightning's own writer stages in the system's temporary folder: from another file system its last move is a copy,
    which a crash can cut.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`, replacing what is there only once the new file is whole and on disk."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One name, so that what a killed process left is overwritten by the next.
        beside = path.with_name(f".{path.name}.partial")
        try:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
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
    """A checkpoint's plain content.

    Raises:
        ValueError: no such file, or one that is truncated or no checkpoint of ours.
    """
    if not path.is_file():
        raise ValueError(
            f"--ckpt_path ({path}) must be an existing checkpoint file; look in the run folder for last.ckpt"
        )
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
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
