"""What `provenance.json` keeps of a run: the configuration files behind it, and how each part between resumes ran."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pathmoe.training.run_folder import PROVENANCE_FILE, write_text_atomically

_UNSET = "unset"


@dataclass(frozen=True)
class RunRecord:
    """The record of a run so far."""

    config_files: dict[str, str] = field(default_factory=dict)
    """Configuration files whose settings the saved configuration holds: path to sha256."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """One for each time that the run went on under other circumstances: its first step, versions, commit, machine,
    data and configuration. A checkpoint is of the last part that began before its step."""

    def with_part(self, part: Mapping[str, Any], config_files: Mapping[str, str]) -> "RunRecord":
        """The record with another part, which counts only where more than its first step is new."""
        plain, last = json.loads(json.dumps(part)), self.parts[-1] if self.parts else {}
        is_new = plain | {"first_step": None} != last | {"first_step": None}
        return RunRecord({**self.config_files, **config_files}, [*self.parts, plain] if is_new else self.parts)

    def write(self, run_folder: Path) -> None:
        """Replace the record in the folder of a run."""
        write_text_atomically(run_folder / PROVENANCE_FILE, json.dumps(asdict(self), indent=2) + "\n")


def read_record(run_folder: Path) -> RunRecord:
    """The record in the folder of a run; an empty one where there is none."""
    file = run_folder / PROVENANCE_FILE
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return RunRecord(content.get("config_files", {}), content.get("parts", []))


def hash_files(files: Iterable[str | Path]) -> dict[str, str]:
    """Each file's path to the sha256 of its content."""
    return {str(file): hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ between two configurations, by dotted key, on one line; empty where none does."""
    old, new = dict(_settings(before)), dict(_settings(now))
    keys = [key for key in old | new if old.get(key, _UNSET) != new.get(key, _UNSET)]
    return ", ".join(_change(key, old.get(key, _UNSET), new.get(key, _UNSET)) for key in keys)


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _change(key: str, old: Any, new: Any) -> str:
    if isinstance(old, list) or isinstance(new, list):  # such as callbacks, which may be pages long
        return key
    old, new = (value if isinstance(value, str) else json.dumps(value) for value in (old, new))
    return f"{key} ({old} -> {new})"
