"""A checkpoint file's checksum: no changed, lost or added byte goes unnoticed, and others read the file as ever."""

import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.training.checked_file import NotWholeError, check_file, write_checked

CONTENT = {"pathmoe": {}, "weights": torch.arange(64.0), "step": 3, "name": "x"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "last.ckpt"
    write_checked(CONTENT, path)
    return path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "last.ckpt"


def assert_refused(path: Path) -> None:
    with pytest.raises(NotWholeError) as error:
        check_file(path)
    assert len(str(error.value).splitlines()) == 1


def test_it_is_what_torch_writes_and_an_archive(file: Path) -> None:
    check_file(file)
    plain = BytesIO()
    torch.save(CONTENT, plain)
    comment = b"pathmoe crc32 "
    content = file.read_bytes()
    assert content[: len(plain.getvalue()) - 2] == plain.getvalue()[:-2]
    assert content[len(plain.getvalue()) :].startswith(comment)
    for mmap in (False, True):
        loaded = torch.load(file, weights_only=True, mmap=mmap)
        assert torch.equal(loaded["weights"], CONTENT["weights"]) and loaded["step"] == 3
    assert zipfile.ZipFile(file).comment.startswith(comment)


def test_a_change_of_any_byte_is_refused(file: Path, damaged: Path) -> None:
    content = bytearray(file.read_bytes())
    for position in range(len(content)):
        bit = 1 << (position % 8)
        content[position] ^= bit
        damaged.write_bytes(content)
        content[position] ^= bit
        assert_refused(damaged)
    damaged.write_bytes(content)
    check_file(damaged)


def test_torch_alone_would_not_notice(file: Path, damaged: Path) -> None:
    content = file.read_bytes()
    place = content.index(torch.arange(64.0).numpy().tobytes())
    damaged.write_bytes(content[: place + 9] + bytes([content[place + 9] ^ 1]) + content[place + 10 :])
    assert not torch.equal(torch.load(damaged, weights_only=True)["weights"], CONTENT["weights"])
    assert_refused(damaged)


def test_every_beginning_is_refused(file: Path, damaged: Path) -> None:
    content = file.read_bytes()
    # Around the archive's own end all, before it some.
    for length in {*range(0, len(content), 13), *range(len(content) - 150, len(content))}:
        damaged.write_bytes(content[:length])
        assert_refused(damaged)


@given(data=st.data())
def test_other_damage_is_refused(data: st.DataObject, file: Path, damaged: Path) -> None:
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content)))
    removed, added = data.draw(st.integers(0, 300)), data.draw(st.binary(max_size=300))
    changed = content[:place] + added + content[place + removed :]
    damaged.write_bytes(changed)
    if changed == content:
        check_file(damaged)
    else:
        assert_refused(damaged)


def test_files_of_earlier_versions_have_the_checksums_of_their_records(tmp_path: Path) -> None:
    path = tmp_path / "earlier.ckpt"
    torch.save(CONTENT, path)
    check_file(path)
    content = path.read_bytes()
    place = content.index(torch.arange(64.0).numpy().tobytes())
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(NotWholeError, match=r"it was altered \(in earlier/data/0\)"):
        check_file(path)
