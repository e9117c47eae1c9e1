from pathlib import Path

import pytest

from pathmoe.data.manifest import SplitManifest
from pathmoe.data.shards import Shard, check_sizes, file_sha256, find_fault, read_shards, write_shards, written_beside

COUNTS = SplitManifest(
    content_sha256="ab" * 32, documents=3, bytes=1000, tokens=400, blocks=6, targets=384, dropped_tokens=15,
    bytes_per_target=2.5,
)  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    made = []
    for split in ("train", "validation"):
        file = tmp_path / split / "00000.arrow"
        file.parent.mkdir()
        file.write_bytes(split.encode() * 10)
        name = f"{split}/00000.arrow"
        made.append(Shard(name=name, size=file.stat().st_size, sha256=file_sha256(file), counts=COUNTS))
    return made


def test_the_list_of_shards_survives_its_file(tmp_path: Path, shards: list[Shard]) -> None:
    write_shards(tmp_path, shards)
    assert read_shards(tmp_path) == shards
    assert [shard.split for shard in shards] == ["train", "validation"]


def test_the_hash_is_that_of_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_missing_or_cut_shard_is_refused_by_name(tmp_path: Path, shards: list[Shard]) -> None:
    check_sizes(tmp_path, shards)
    cut = tmp_path / "validation" / "00000.arrow"
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"^.*/validation/00000\.arrow has 99 bytes, not the 100 prepared; remove the f"
    ):
        check_sizes(tmp_path, shards)
    cut.unlink()
    with pytest.raises(ValueError, match=r"^.*/validation/00000\.arrow is missing from the prepared data; remove the "):
        check_sizes(tmp_path, shards)
    check_sizes(tmp_path, shards[:1])


def test_faults_are_led_by_the_file(tmp_path: Path, shards: list[Shard]) -> None:
    assert [find_fault((tmp_path, shard)) for shard in shards] == [None, None]
    altered = tmp_path / "train" / "00000.arrow"
    altered.write_bytes(b"T" + altered.read_bytes()[1:])
    (tmp_path / "validation" / "00000.arrow").unlink()
    assert [find_fault((tmp_path, shard)) for shard in shards] == [
        f"{altered} was altered after it was prepared",
        f"{tmp_path}/validation/00000.arrow is missing from the prepared data",
    ]


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), written_beside(tmp_path / "a" / "file") as beside:  # both
        beside.write_text("half")
        assert not (tmp_path / "a" / "file").exists()
        raise OSError("disk full")
    assert list((tmp_path / "a").iterdir()) == []
    with written_beside(tmp_path / "a" / "file") as beside:
        beside.write_text("whole")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.parametrize("content", ["", "[{", "\x00\x00"])
def test_a_list_of_shards_that_was_cut_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "shards.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/shards\.json was cut or altered \(.*\); remove it and prepare"):
        read_shards(tmp_path)
