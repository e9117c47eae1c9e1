import multiprocessing
import time
from pathlib import Path

import pytest

from pathmoe.data.cache import default_cache_dir, hash_of, write_folder, write_json


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("content")

    for _ in range(2):
        write_folder(tmp_path / "a" / "place", write)
    assert len(calls) == 1
    assert (tmp_path / "a" / "place" / "file").read_text() == "content"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["place"]


@pytest.mark.parametrize("error", [ValueError("no"), OSError("disk full")])
def test_nothing_is_left_of_a_folder_that_failed(tmp_path: Path, error: Exception) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(type(error), match=str(error)):
        write_folder(tmp_path / "place", write)
    assert list(tmp_path.iterdir()) == []


def slow_write(folder: Path) -> None:
    (folder / "one").write_text("x")
    time.sleep(0.3)
    (folder / "two").write_text("x")


def test_processes_that_write_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_folder, args=(tmp_path / "place", slow_write)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["one", "place", "two"]


def test_json_is_replaced_in_one_step(tmp_path: Path) -> None:
    for value in ({"a": 1}, {"b": [2]}):
        write_json(tmp_path / "x" / "file.json", value)
    assert (tmp_path / "x" / "file.json").read_text().split() == ["{", '"b":', "[", "2", "]", "}"]
    assert len(list((tmp_path / "x").iterdir())) == 1


def test_hash_depends_on_every_part() -> None:
    hashes = [hash_of(), hash_of(1), hash_of(1, 2), hash_of("1"), hash_of([1, 2]), hash_of({"a": 1, "b": None})]
    assert len(set(hashes)) == len(hashes)
    assert hash_of({"a": 1, "b": None}) == hash_of({"b": None, "a": 1})


def test_the_cache_folder_respects_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "pathmoe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "pathmoe"
