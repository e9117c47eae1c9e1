"""Folders that are written once, beside their place, and renamed into it: a reader never sees half of one."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def default_cache_dir() -> Path:
    """`pathmoe` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pathmoe"


def hash_of(*parts: Any) -> str:
    """Hex sha256 of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_folder(place: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `place` with `write(folder)`, unless it is there.

    Two processes may do this at once: each writes its own folder, the first to finish names it. Nothing is left
    behind where `write` raises.
    """
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        write(beside)
        beside.rename(place)
    except OSError:
        if not place.exists():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_json(file: Path) -> Any:
    """Read what `write_json` wrote. Raises ValueError naming a file that was cut or altered."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} was cut or altered ({error}); remove it and prepare the data again") from error


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file in one step, so that a reader sees the old content or the new, on disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent, text=True)
    with os.fdopen(handle, "w") as stream:
        json.dump(value, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, file)
