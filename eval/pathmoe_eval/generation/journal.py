"""Segments of a search as they are decoded, on disk, so that one that was interrupted goes on from them."""

# Shapes: T tokens of a segment, L MoE layers, K experts per token.

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.segments import Place, Segment

FORMAT = 1


class Journal:
    """Segments by their place, kept in memory, and where there is a file also in it, one line of JSON each.

    A process that is killed loses the line that it was writing at most, since lines go to the operating system at once.
    They are not forced to the disk: where the machine itself goes down, the last ones are decoded again (our choice).

    Attributes:
        segments: all so far, those of an earlier process included.
        num_fed_before: tokens of these that earlier processes fed to the model.
    """

    def __init__(self, path: Path | None, search: Mapping[str, Any] | None = None) -> None:
        """Open a journal, or begin one. Two processes can't have one open, but where the file system has no locks.

        Args:
            path: of the file; None keeps segments in memory only.
            search: what decides the segments: model, prompt, sampling. JSON must be able to write it.

        Raises:
            ValueError: the file is of another search, no journal, or open.
        """
        self.segments: dict[Place, Segment] = {}
        self.num_fed_before = 0
        self._file: IO[bytes] | None = None
        if path is None:
            return
        header = json.dumps({"format": FORMAT, "search": dict(search or {})}, sort_keys=True).encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
        try:
            _lock(file, path)
            self._read(file, path, header)
        except BaseException:
            file.close()
            raise
        self._file = file
        self.num_fed_before = sum(len(segment.expert_ids) for segment in self.segments.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, place: Place, segment: Segment) -> None:
        """Add a segment."""
        self.segments[place] = segment
        if self._file is not None:
            _write(self._file, json.dumps({"place": place, **_plain(segment)}).encode() + b"\n")

    def _read(self, file: IO[bytes], path: Path, header: bytes) -> None:
        """Take what is whole, and cut off a last line that was interrupted."""
        file.seek(0)
        text = file.read()
        if not text.startswith(header) and not header.startswith(text):
            raise ValueError(
                f"{path} (of another search) must be of this model, prompt and sampling; choose another --out, or "
                "remove it"
            )
        if len(text) < len(header):
            file.truncate(0)
            _write(file, header)
            return
        end = text.rindex(b"\n") + 1
        for number, line in enumerate(text[len(header) : end].splitlines(), start=2):
            try:
                values = json.loads(line)
                self.segments[tuple(values["place"])] = _segment(values)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} (line {number}) must be a segment of a search; remove the file") from error
        file.truncate(end)


def _lock(file: IO[bytes], path: Path) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{path} (in use) must be of one process; wait for it, or choose another --out") from error


def _write(file: IO[bytes], line: bytes) -> None:
    while line:
        line = line[file.write(line) :]


def _plain(segment: Segment) -> dict[str, Any]:
    routing_TLK = np.array(segment.expert_ids, dtype="<u2")
    return {
        "token_ids": segment.token_ids,
        "log_probabilities": segment.log_probabilities,
        "expert_ids": {"shape": routing_TLK.shape, "base64": base64.b64encode(routing_TLK.tobytes()).decode()},
        "end": segment.end,
        # JSON has no NaN: a segment that ends in no fork is one without children.
        "fork_mass": segment.fork_mass if segment.children else None,
        "children": segment.children,
    }


def _segment(values: Mapping[str, Any]) -> Segment:
    mass, routing = values["fork_mass"], values["expert_ids"]
    routing_TLK: NDArray[np.unsignedinteger] = np.frombuffer(base64.b64decode(routing["base64"]), dtype="<u2")
    return Segment(
        token_ids=list(values["token_ids"]),
        log_probabilities=list(values["log_probabilities"]),
        expert_ids=list(routing_TLK.reshape(routing["shape"])),
        end=values["end"],
        fork_mass=float("nan") if mass is None else mass,
        children=[(token, log_probability) for token, log_probability in values["children"]],
    )
