"""The manifest of a checkpoint folder: which file is damaged, and that the manifest itself is not."""

import hashlib
import json
from pathlib import Path

import pytest

from pathmoe.training.checked_file import NotWholeError
from pathmoe.training.checkpoint_manifest import (
    MANIFEST_FILE,
    FileSum,
    check_manifest_file,
    read_manifest,
    sum_file,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one").write_bytes(bytes(range(256)))
    (tmp_path / "two").write_bytes(b"")
    write_manifest(tmp_path, {name: sum_file(tmp_path / name) for name in ("two", "one")}, {"step": 3})
    return tmp_path


def test_it_lists_sizes_and_checksums(folder: Path) -> None:
    files = read_manifest(folder)
    assert files == {
        "one": FileSum(256, hashlib.sha256(bytes(range(256))).hexdigest()),
        "two": FileSum(0, hashlib.sha256(b"").hexdigest()),
    }
    assert json.loads((folder / MANIFEST_FILE).read_text())["step"] == 3
    for name, expected in files.items():
        check_manifest_file(folder, name, expected)


def test_a_change_of_any_byte_of_it_is_refused(folder: Path) -> None:
    manifest = folder / MANIFEST_FILE
    content = bytearray(manifest.read_bytes())
    for position in range(len(content)):
        bit = 1 << (position % 8)
        content[position] ^= bit
        manifest.write_bytes(content)
        content[position] ^= bit
        with pytest.raises(NotWholeError, match=r"^manifest\.json was altered"):
            read_manifest(folder)
    for length in range(0, len(content), 7):
        manifest.write_bytes(content[:length])
        with pytest.raises(NotWholeError, match=r"^manifest\.json was altered"):
            read_manifest(folder)
    manifest.unlink()
    with pytest.raises(NotWholeError, match=r"^manifest\.json is missing$"):
        read_manifest(folder)


def test_what_is_wrong_with_a_file_is_said(folder: Path) -> None:
    expected = read_manifest(folder)["one"]
    (folder / "one").write_bytes(bytes([1, *range(1, 256)]))
    found = hashlib.sha256((folder / "one").read_bytes()).hexdigest()[:12]
    with pytest.raises(NotWholeError) as altered:
        check_manifest_file(folder, "one", expected)
    assert str(altered.value) == f"one was altered (SHA-256 {found}, {expected.sha256[:12]} expected)"
    (folder / "one").write_bytes(bytes(255))
    with pytest.raises(NotWholeError, match=r"^one was cut or altered \(255 bytes, 256 expected\)$"):
        check_manifest_file(folder, "one", expected)
    (folder / "one").unlink()
    with pytest.raises(NotWholeError, match=r"^one is missing \(256 bytes expected\)$"):
        check_manifest_file(folder, "one", expected)
