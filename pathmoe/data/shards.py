"""Shards of prepared data: files of blocks, each with its counts, size and hash, checked before they are read."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from pathmoe.data.blocks import REMEDY
from pathmoe.data.cache import read_json, write_json
from pathmoe.data.manifest import SplitManifest

SHARDS_FILE = "shards.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of blocks."""

    name: str
    """Place within the folder of prepared data: `train/00000.arrow`."""
    size: int
    """Bytes of the file."""
    sha256: str
    """Hash of the file."""
    counts: SplitManifest
    """Of the documents that it is made of, as if they were the whole split."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """What `asdict` wrote."""
        return cls(**fields | {"counts": SplitManifest(**fields["counts"])})

    @property
    def split(self) -> str:
        """`train` or `validation`."""
        return self.name.split("/")[0]


def write_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Write the list of the shards of a folder."""
    write_json(folder / SHARDS_FILE, [asdict(shard) for shard in shards])


def read_shards(folder: Path) -> list[Shard]:
    """The list of the shards of a folder, those of train first, in their order."""
    return [Shard.from_json(fields) for fields in read_json(folder / SHARDS_FILE)]


def check_sizes(folder: Path, shards: Sequence[Shard]) -> None:
    """Raise ValueError naming the first file that is missing or has another size; nothing is read."""
    for shard in shards:
        if fault := _fault_of_size(folder, shard):
            raise ValueError(f"{fault}; {REMEDY}")


def find_fault(of_folder: tuple[Path, Shard]) -> str | None:
    """What is wrong with a shard of a folder, led by its file; None for nothing. All of it is read."""
    folder, shard = of_folder
    fault = _fault_of_size(folder, shard)
    if fault is None and file_sha256(folder / shard.name) != shard.sha256:
        return f"{folder / shard.name} was altered after it was prepared"
    return fault


def _fault_of_size(folder: Path, shard: Shard) -> str | None:
    file = folder / shard.name
    if not file.is_file():
        return f"{file} is missing from the prepared data"
    if file.stat().st_size != shard.size:
        return f"{file} has {file.stat().st_size:,} bytes, not the {shard.size:,} prepared"
    return None


def file_sha256(file: Path) -> str:
    """Hex sha256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def written_beside(file: Path) -> Iterator[Path]:
    """A place to write to, which becomes `file` in one step at the end; what raises leaves nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}-{uuid4().hex}")
    try:
        yield beside
        with beside.open("rb") as content:
            os.fsync(content.fileno())  # before a record says that it is there
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
