"""The names of checkpoints in a run's folder, each of which stands for a whole one at every moment.

A checkpoint file has as many hard links as names. A folder can't be replaced in one step and has no hard links, so a
checkpoint folder lies under a hidden, numbered name, and its names are symbolic links to it; it goes once it has none.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pathmoe.training.background_saves import BackgroundSaves


@dataclass(frozen=True)
class SaveOptions:
    """What `trainer.save_checkpoint` is told as its `storage_options`.

    Args:
        previous: name for the checkpoint that is replaced, in the same folder; None lets it go.
        permanent: a second name for the new one, in the same folder.
        background: where it is written; None waits for it.
    """

    previous: Path | None = None
    permanent: Path | None = None
    background: BackgroundSaves | None = None


def beside(path: Path) -> Path:
    """Where a checkpoint lies while it is written: one name, so that what a killed process left is overwritten."""
    return _hidden(path, "partial")


def give_names(whole: Path, path: Path, options: SaveOptions) -> None:
    """Have `path` stand for a checkpoint, and the names in `options` for what it has replaced and for it.

    Wherever a kill comes, `path` and `options.previous` each stand for one that is whole, and once there have been two,
    for different ones. Only one process may do this in a folder.

    Args:
        whole: a file, or a folder, that lies beside `path`, complete and on disk; it is moved.
        path: its name.
        options: its other names.
    """
    previous, permanent = options.previous, options.permanent
    if whole.is_dir():
        _sync(whole)
        whole = whole.rename(_numbered(path))
    for name in (previous, permanent):
        if name is not None and _is_folder(name):
            name.rename(_numbered(path))  # as copying a run makes of a link; it is replaced below
    replaced = _hidden(path, "old")
    replaced.unlink(missing_ok=True)
    if _is_folder(path):
        old = _numbered(path)
        if previous is not None:
            # For the moment in which there is no `path`.
            _link(previous, old)
        path.rename(old)
    elif previous is not None and path.exists():
        _stand_for(replaced, path)
    if permanent is not None:
        _stand_for(permanent, whole)
    if whole.is_dir():
        _stand_for(path, whole)
    else:
        os.replace(whole, path)
    if os.path.lexists(replaced) and previous is not None:
        os.replace(replaced, previous)
    _sync(path.parent)
    _remove_nameless(path)


def _stand_for(name: Path, checkpoint: Path) -> None:
    """Give a checkpoint one more name, in one step; where there are no hard links, a file is copied."""
    if checkpoint.is_dir():
        _link(name, checkpoint.resolve())
        return
    new = _hidden(name, "new")
    new.unlink(missing_ok=True)
    try:
        os.link(checkpoint, new)
    except OSError:
        shutil.copy2(checkpoint, new)
    os.replace(new, name)
    new.unlink(missing_ok=True)  # renaming does nothing between two names of one file


def _link(name: Path, folder: Path) -> None:
    new = _hidden(name, "new")
    new.unlink(missing_ok=True)
    new.symlink_to(folder.name)
    os.replace(new, name)


def _hidden(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}.{end}")


def _numbered(path: Path) -> Path:
    """A name that no folder has had since those that are there, so that who reads one never sees another."""
    return _hidden(path, str(1 + max(_numbers(path), default=0)))


def _numbers(path: Path) -> list[int]:
    pattern = re.compile(re.escape(_hidden(path, "").name) + r"(\d+)")
    return [int(match[1]) for file in path.parent.iterdir() if (match := pattern.fullmatch(file.name))]


def _is_folder(name: Path) -> bool:
    return name.is_dir() and not name.is_symlink()


def _remove_nameless(path: Path) -> None:
    named = {link.resolve() for link in path.parent.iterdir() if link.is_symlink()}
    for number in _numbers(path):
        folder = _hidden(path, str(number))
        if folder.resolve() not in named:
            shutil.rmtree(folder)


def _sync(folder: Path) -> None:
    """Have the names in a folder on disk, before something else relies on them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
