"""The manifest of a checkpoint folder: the size and the SHA-256 of each of its files, written last."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathmoe.training.checked_file import NotWholeError
from pathmoe.training.run_folder import write_text_atomically

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class FileSum:
    """What a file must be."""

    bytes: int
    sha256: str


def sum_file(path: Path) -> FileSum:
    """Read a file to its end."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileSum(bytes=file.tell(), sha256=digest.hexdigest())


def write_manifest(folder: Path, files: Mapping[str, FileSum], facts: Mapping[str, Any]) -> None:
    """Write the manifest of `files` into the folder that holds them; `facts` are for who reads it."""
    content = {**facts, "files": {name: asdict(files[name]) for name in sorted(files)}}
    write_text_atomically(folder / MANIFEST_FILE, _text(content))


def read_manifest(folder: Path) -> dict[str, FileSum]:
    """The files that must be in a folder, by name.

    Raises:
        NotWholeError: the manifest is missing, or was altered.
    """
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        content = json.loads(text)
        sealed = {key: value for key, value in content.items() if key != "sha256"}
        files = {name: FileSum(**value) for name, value in sealed["files"].items()}
    except FileNotFoundError:
        raise NotWholeError(f"{MANIFEST_FILE} is missing") from None
    except Exception as error:
        raise NotWholeError(f"{MANIFEST_FILE} was altered, or cut") from error
    if text != _text(sealed):
        raise NotWholeError(f"{MANIFEST_FILE} was altered")
    return files


def check_manifest_file(folder: Path, name: str, expected: FileSum) -> None:
    """Compare a file with the manifest.

    Raises:
        NotWholeError: it is not what it must be.
    """
    file = folder / name
    if not file.is_file():
        raise NotWholeError(f"{name} is missing ({expected.bytes} bytes expected)")
    if (size := file.stat().st_size) != expected.bytes:
        raise NotWholeError(f"{name} was cut or altered ({size} bytes, {expected.bytes} expected)")
    if (found := sum_file(file).sha256) != expected.sha256:
        raise NotWholeError(f"{name} was altered (SHA-256 {found[:12]}, {expected.sha256[:12]} expected)")


def _text(content: Mapping[str, Any]) -> str:
    """A manifest with a checksum of its own."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2) + "\n"
