"""Folders beside their place: those of the living stay, those of the dead go, and no others are touched."""

import errno
import fcntl
import threading
from pathlib import Path

import pytest

from pathmoe_eval.traces.unfinished import begin_beside, remove_stale


def left_behind(place: Path) -> Path:
    """As a killed process leaves it: its lock has gone with it."""
    beside, lock = begin_beside(place, "data")
    lock.close()
    return beside


def test_what_the_dead_left_goes_and_what_the_living_hold_stays(tmp_path: Path) -> None:
    place = tmp_path / "trace"
    dead = left_behind(place)
    living, lock = begin_beside(place, "data")
    assert not dead.exists()
    another, other_lock = begin_beside(place, "data")
    assert living.is_dir() and another.is_dir() and another != living
    remove_stale(place, "data")
    assert sorted(tmp_path.iterdir()) == sorted([living, another])
    lock.close()
    remove_stale(place, "data")
    assert list(tmp_path.iterdir()) == [another]
    other_lock.close()


def test_a_lock_outlives_the_renaming(tmp_path: Path) -> None:
    beside, lock = begin_beside(tmp_path / "trace", "data")
    beside.rename(tmp_path / "trace")
    remove_stale(tmp_path / "trace", "data")
    lock.close()
    remove_stale(tmp_path / "trace", "data")
    assert (tmp_path / "trace" / "data").is_file()


def test_one_that_died_at_once_goes_and_nothing_of_others(tmp_path: Path) -> None:
    names = [".trace-notahex0", ".trace-0123456", ".other-01234567", "trace-01234567", ".trace-01234567.bak"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".trace-89abcdef").mkdir()
    (tmp_path / ".trace-aaaaaaaa").mkdir()
    (tmp_path / ".trace-aaaaaaaa" / "mine.txt").touch()
    (tmp_path / ".trace-bbbbbbbb").touch()
    (tmp_path / ".trace-cccccccc").symlink_to(tmp_path / ".other-01234567")
    remove_stale(tmp_path / "trace", "data")
    stay = [*names, ".trace-aaaaaaaa", ".trace-bbbbbbbb", ".trace-cccccccc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
    remove_stale(tmp_path / "nowhere" / "trace", "data")


def test_without_locks_nothing_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    dead = left_behind(tmp_path / "trace")
    beside, lock = begin_beside(tmp_path / "trace", "data")
    assert dead.is_dir() and beside.is_dir()
    lock.close()


def test_many_that_begin_and_die_at_once_never_lose_a_living_one(tmp_path: Path) -> None:
    place, lost = tmp_path / "trace", []

    def begin_and_die() -> None:
        for _ in range(60):
            beside, lock = begin_beside(place, "data")
            if not (beside / "data").exists():
                lost.append(beside)
            lock.close()

    threads = [threading.Thread(target=begin_and_die) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remove_stale(place, "data")
    assert lost == [] and list(tmp_path.iterdir()) == []
