"""Folders that are written beside their place: each with a lock that ends with its process, so that those of dead ones
are told from those of live ones, and removed."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import uuid
from pathlib import Path
from typing import IO


def begin_beside(folder: Path, file_name: str) -> tuple[Path, IO[bytes]]:
    """A new hidden folder `.NAME-...` beside the place of another, and what says that its writer lives.

    Args:
        folder: the place; what killed writers of it have left beside it is removed.
        file_name: of a file to be made in the new folder, which carries the lock.

    Returns:
        The folder, and the open file that holds the lock (flock: it ends with the process, however that ends). Close it
        when the folder is in its place or gone.
    """
    remove_stale(folder, file_name)
    while True:
        beside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        beside.mkdir(parents=True)
        try:
            lock = (beside / file_name).open("ab")
        except FileNotFoundError:  # taken for a dead writer's, before there was a lock
            continue
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is ever stale
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (beside / file_name).exists():
            return beside, lock
        lock.close()


def remove_stale(folder: Path, file_name: str) -> None:
    """Remove what killed writers of a folder have left beside it; whatever a live process holds stays.

    Where the file system has no locks, or another user's folder can't be opened, nothing is removed. Locks that a mount
    keeps to one machine tell nothing of another's: there, two machines must not write to the same place.

    Args:
        folder: as for `begin_beside`.
        file_name: as for `begin_beside`.
    """
    if not folder.parent.is_dir():
        return
    ours = re.compile(rf"\.{re.escape(folder.name)}-[0-9a-f]{{8}}")
    for beside in folder.parent.iterdir():
        if not ours.fullmatch(beside.name) or beside.is_symlink() or not beside.is_dir():
            continue
        with contextlib.suppress(OSError):
            if not (beside / file_name).exists():
                beside.rmdir()  # of one that died at once; not empty, it is nobody's that we know
                continue
            with (beside / file_name).open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(beside)
