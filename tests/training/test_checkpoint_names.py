"""Names in a run's folder: whole at every moment, whatever kills who changes them."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from pathmoe.training.checkpoint_names import SaveOptions, beside, give_names

Write = Callable[[Path, int], None]

# Whatever changes a folder tells Python's auditors first.
CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def write_file(path: Path, step: int) -> None:
    path.write_text(str(step))


def write_folder(path: Path, step: int) -> None:
    path.mkdir()
    for name in ("shard", "manifest"):
        (path / name).write_text(str(step))


def read(path: Path) -> int | None:
    """The step of a checkpoint that is whole; None where there is none."""
    if not path.exists():
        return None
    if path.is_file():
        return int(path.read_text())
    steps = {(path / name).read_text() for name in ("shard", "manifest")}
    assert len(steps) == 1
    return int(steps.pop())


def save(folder: Path, step: int, write: Write, permanent: bool = False) -> None:
    path = folder / "last.ckpt"
    new = beside(path)
    shutil.rmtree(new, ignore_errors=True)
    new.unlink(missing_ok=True)
    write(new, step)
    options = SaveOptions(folder / "previous.ckpt", folder / f"step={step}.ckpt" if permanent else None)
    give_names(new, path, options)


def as_copied(folder: Path) -> None:
    """What copying makes of a folder: links become what they stand for, and nothing hidden comes along."""
    copy = shutil.copytree(folder, folder.with_name("copy"), ignore=shutil.ignore_patterns(".*"))
    shutil.rmtree(folder)
    shutil.move(copy, folder)


def steps(folder: Path) -> dict[str, int | None]:
    return {path.name: read(path) for path in folder.glob("[!.]*") if path.exists()}


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_the_last_two_have_names_and_those_that_are_kept(write: Write, tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, write, permanent=step in (2, 6))
        previous = {"previous.ckpt": step - 1} if step > 1 else {}
        kept = {f"step={n}.ckpt": n for n in (2, 6) if n <= step}
        assert steps(tmp_path) == {"last.ckpt": step, **previous, **kept}
    hidden = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(hidden) == (3 if write is write_folder else 0), "folders that have names, and no other"


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_no_bytes_are_stored_twice(write: Write, tmp_path: Path) -> None:
    save(tmp_path, 1, write, permanent=True)
    assert (tmp_path / "step=1.ckpt").samefile(tmp_path / "last.ckpt")
    save(tmp_path, 2, write)
    assert (tmp_path / "step=1.ckpt").samefile(tmp_path / "previous.ckpt")


def test_who_reads_a_folder_goes_on_reading_it(tmp_path: Path) -> None:
    save(tmp_path, 1, write_folder)
    reading = (tmp_path / "last.ckpt").resolve()
    save(tmp_path, 2, write_folder)
    assert read(reading) == 1
    for step in (3, 4, 5):
        save(tmp_path, step, write_folder)
        assert not reading.exists(), "and no other checkpoint is given its place"


def test_a_folder_takes_the_place_of_a_file_and_the_other_way_round(tmp_path: Path) -> None:
    for step, write in enumerate((write_file, write_folder, write_file, write_file, write_folder), start=1):
        save(tmp_path, step, write, permanent=step == 3)
        assert steps(tmp_path) | {"step=3.ckpt": 0} == {
            "last.ckpt": step, "step=3.ckpt": 0, **({"previous.ckpt": step - 1} if step > 1 else {})
        }  # fmt: skip


def test_a_permanent_name_is_dropped_by_removing_it(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, write_folder, permanent=True)
    bytes_of_one = (tmp_path / "step=1.ckpt").resolve()
    (tmp_path / "step=1.ckpt").unlink()
    save(tmp_path, 4, write_folder)
    assert not bytes_of_one.exists()


def test_without_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refused)
    for step in (1, 2, 3):
        save(tmp_path, step, write_file, permanent=step == 2)
    assert steps(tmp_path) == {"last.ckpt": 3, "previous.ckpt": 2, "step=2.ckpt": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("before", [(), (write_file,), (write_folder,), (write_file,) * 2, (write_folder,) * 3])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_kill_at_any_moment_leaves_whole_checkpoints(
    write: Write, before: tuple[Write, ...], copied: bool, tmp_path: Path
) -> None:
    for killed_at in count():
        folder = tmp_path / str(killed_at)
        folder.mkdir()
        for step, write_one in enumerate(before, start=1):
            save(folder, step, write_one)
        if copied:
            as_copied(folder)
        ended = _save_and_be_killed(folder, len(before) + 1, write, killed_at)
        found = steps(folder)
        allowed = {len(before), len(before) + 1} - {0}
        if before:
            # Only in the step in which a copied folder becomes a link has "last" to be looked for under "previous".
            assert found.get("last.ckpt", found.get("previous.ckpt")) in allowed
            assert "last.ckpt" in found or copied
        if len(before) > 1 and not copied:
            assert found["previous.ckpt"] in (len(before) - 1, len(before))
            assert found["previous.ckpt"] != found["last.ckpt"]
        for step in (10, 11):
            save(folder, step, write)
        assert steps(folder) == {"last.ckpt": 11, "previous.ckpt": 10}, "the next saves settle it"
        hidden = {path.name for path in folder.iterdir() if path.name.startswith(".")}
        assert len(hidden) == (2 if write is write_folder else 0), hidden
        if ended:
            assert killed_at > 2
            break


def _save_and_be_killed(folder: Path, step: int, write: Write, killed_at: int) -> bool:
    """Save in a process that is killed before its change of this number; whether it came to its end."""
    child = os.fork()
    if child == 0:
        changes = count()

        def kill(event: str, _: object) -> None:
            if event in CHANGES and next(changes) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        save(folder, step, write)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0
