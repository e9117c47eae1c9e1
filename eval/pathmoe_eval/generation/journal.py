"""Segments of a search as they are decoded, on disk, so that one that was interrupted goes on from them."""

# Shapes: T tokens of a segment, L MoE layers, K experts per token.

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pathmoe_eval.generation.segments import Place, Segment

FORMAT = 1


class Journal:
    """Segments by their place, kept in memory, and where there is a file also in it, one line of JSON each.

    Attributes:
        segments: all so far, those of an earlier process included.
    """

    def __init__(self, path: Path | None, search: Mapping[str, Any] | None = None) -> None:
        """Open a journal, or begin one.

        Args:
            path: of the file; None keeps segments in memory only.
            search: what decides the segments: model, prompt, sampling. JSON must be able to write it.

        Raises:
            ValueError: the file is of another search, or no journal.
        """
        self.segments: dict[Place, Segment] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        header = json.dumps({"format": FORMAT, "search": dict(search or {})}, sort_keys=True)
        if path.exists():
            self._read(path, header)
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", encoding="utf-8")
        if is_new:
            self._file.write(header + "\n")

    def write(self, place: Place, segment: Segment) -> None:
        """Add a segment; a process that is killed loses the one that it was writing at most."""
        self.segments[place] = segment
        if self._file is not None:
            self._file.write(json.dumps({"place": place, **_plain(segment)}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path, header: str) -> None:
        """Take what is whole, and cut off a last line that was interrupted."""
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        lines = whole.decode("utf-8", errors="replace").splitlines()
        if lines and lines[0] != header:
            raise ValueError(
                f"{path} (of another search) must be of this model, prompt and sampling; choose another --out, or "
                "remove it"
            )
        try:
            for line in lines[1:]:
                values = json.loads(line)
                self.segments[tuple(values.pop("place"))] = _segment(values)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} ({error}) must be the journal of a search; remove it") from error
        if len(whole) < len(text):
            os.truncate(path, len(whole))


def _plain(segment: Segment) -> dict[str, Any]:
    # JSON has no NaN: a segment that ends in no fork is one without children.
    fields = {"token_ids": segment.token_ids, "log_probabilities": segment.log_probabilities, "end": segment.end}
    routing = [ids_LK.tolist() for ids_LK in segment.expert_ids]
    mass = segment.fork_mass if segment.children else None
    return fields | {"expert_ids": routing, "fork_mass": mass, "children": segment.children}


def _segment(values: Mapping[str, Any]) -> Segment:
    mass = values["fork_mass"]
    return Segment(
        token_ids=list(values["token_ids"]),
        log_probabilities=list(values["log_probabilities"]),
        expert_ids=[np.array(ids_LK, dtype=np.uint16) for ids_LK in values["expert_ids"]],
        end=values["end"],
        fork_mass=float("nan") if mass is None else mass,
        children=[(token, log_probability) for token, log_probability in values["children"]],
    )
