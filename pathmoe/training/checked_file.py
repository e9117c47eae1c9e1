"""A checkpoint file whose last bytes are its checksum, where PyTorch, and whatever opens archives, sees a comment."""

import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch


class NotWholeError(ValueError):
    """What is wrong with a checkpoint, to go on with the sentence "must be a whole checkpoint, but"."""


_COMMENT = re.compile(rb"pathmoe crc32 ([0-9a-f]{8})")
_COMMENT_BYTES = len(b"pathmoe crc32 01234567")
_LENGTH = _COMMENT_BYTES.to_bytes(2, "little")
_NO_COMMENT = bytes(2)
"""The end of an archive, as torch.save writes it: the length of its comment."""

_END_BYTES = 22
"""The last record of an archive without a comment."""

_CHUNK_BYTES = 1 << 20


def write_checked(content: Any, path: Path) -> None:
    """Write what `torch.save` would, and its checksum; on return it is on disk."""
    with path.open("wb") as file:
        summing = _Summing(file)
        torch.save(content, summing)  # type: ignore[arg-type]  # all that it calls is write and flush
        file.seek(-len(_NO_COMMENT), os.SEEK_END)
        file.write(_LENGTH + b"pathmoe crc32 %08x" % summing.crc32)
        file.flush()
        os.fsync(file.fileno())


def check_file(path: Path) -> None:
    """Read a checkpoint file to its end and compare.

    A CRC-32 of the whole file misses no change within four bytes, and of others one in 2^32. Those that torch.save
    puts beside each tensor leave the rest of the file out, and torch.load does not look at them. They are all that a
    file of an earlier version has.

    Raises:
        NotWholeError: it is not as it was written.
    """
    size = path.stat().st_size
    end = max(0, size - _COMMENT_BYTES - len(_LENGTH))
    with path.open("rb") as file:
        file.seek(end)
        length, comment = file.read(len(_LENGTH)), file.read()
        if (match := _COMMENT.fullmatch(comment)) is None:
            _check_records(path)
            return
        file.seek(0)
        found = zlib.crc32(_NO_COMMENT, _sum(file, end))
    expected = int(match[1], 16)
    if found != expected or length != _LENGTH:
        raise NotWholeError(f"it was altered (CRC-32 {found:08x} of {size} bytes, {expected:08x} expected)")


def _sum(file: IO[bytes], num_bytes: int) -> int:
    crc32 = 0
    while num_bytes and (chunk := file.read(min(num_bytes, _CHUNK_BYTES))):
        crc32 = zlib.crc32(chunk, crc32)
        num_bytes -= len(chunk)
    return crc32


def _check_records(path: Path) -> None:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            file.seek(-_END_BYTES, os.SEEK_END)
            end = file.read()
    except Exception as error:
        # Bytes that are no archive lead the reader to errors of every kind.
        raise NotWholeError("it is cut or damaged, or something else") from error
    if not end.startswith(b"PK\x05\x06") or not end.endswith(_NO_COMMENT):
        raise NotWholeError("it is cut or damaged at its end")
    if damaged:
        raise NotWholeError(f"it was altered (in {damaged})")


class _Summing:
    """A file to write to, with the checksum of what has been written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.crc32 = 0

    def write(self, data: Any) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
