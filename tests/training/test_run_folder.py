"""The folder of a run: what its names stand for, whose it is, and what is never written into it by halves."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pathmoe.training.run_folder import (
    default_run_folder,
    lock_run_folder,
    newest_run_folder,
    refuse_another_run,
    resolve_checkpoint,
    saved_config,
    saved_tokenizer,
    write_text_atomically,
)

LOCK_AND_WAIT = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs: an old one, a newer one, and one that has no checkpoint yet."""
    for age, name in enumerate(["new", "old"]):
        (tmp_path / name).mkdir()
        for file in ("config.yaml", "last.ckpt", "best.ckpt"):
            (tmp_path / name / file).touch()
        os.utime(tmp_path / name / "last.ckpt", (1e9 - age, 1e9 - age))
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["configs/tiny.yaml", "configs/routers/path_b4.yaml"], "tiny-path_b4"),
        (["/somewhere/my.size.yml"], "my.size"),
        (["runs/old/config.yaml", "configs/tiny.yaml"], "tiny"),
        ([], "run"),
    ],
)
def test_a_run_is_named_after_its_configs(files: list[str], name: str) -> None:
    assert default_run_folder(files) == Path("runs") / name


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        ({}, r"tiny"),
        ({"model.config.layers_per_router": "2"}, r"tiny-layers_per_router=2"),
        ({"seed_everything": "1", "model.optimizer.lr": "1e-3"}, r"tiny-optimizer\.lr=1e-3-seed_everything=1"),
        ({"model.config.layers_per_router": "[2, 6]"}, r"tiny-layers_per_router=2,6"),
        ({"data.source": "../texts/*.txt"}, r"tiny-source=\.\._texts_\.txt-[0-9a-f]{8}"),
        ({"data.source": "/" + "x" * 300}, r"tiny-source=_x{63}-[0-9a-f]{8}"),
        ({"data.text_key": "ä\n\x00'\""}, r"tiny-text_key=_-[0-9a-f]{8}"),
    ],
)
def test_what_overrides_the_configs_is_in_the_name(overrides: dict[str, str], label: str, tmp_path: Path) -> None:
    folder = default_run_folder(["configs/tiny.yaml"], overrides)
    assert folder.parent == Path("runs")
    assert re.fullmatch(label, folder.name)
    assert folder == default_run_folder(["configs/tiny.yaml"], dict(reversed(overrides.items())))
    (tmp_path / folder).mkdir(parents=True)


def test_settings_that_look_alike_in_a_name_are_told_apart() -> None:
    values = ["a/b", "a_b", "a b", "ab", "x" * 100, "x" * 101]
    assert len({default_run_folder([], {"data.source": value}) for value in values}) == len(values)


def test_the_newest_run_is_the_one_whose_checkpoint_was_written_last(runs: Path, tmp_path: Path) -> None:
    assert newest_run_folder(runs=runs) == runs / "new"
    os.utime(runs / "old" / "last.ckpt")
    assert newest_run_folder(runs=runs) == runs / "old"
    os.utime(runs / "new" / "best.ckpt", (2e9, 2e9))
    assert newest_run_folder("best", runs) == runs / "new"
    (runs / "new" / "last.ckpt").unlink()
    assert newest_run_folder(runs=runs) == runs / "new"
    for name in ("last", "previous", "best"):
        message = rf"--ckpt_path \({name}\) must name a run, but .* holds no \*/{name}\.ckpt; train first"
        with pytest.raises(ValueError, match=message):
            newest_run_folder(name, tmp_path / "nowhere")


def test_what_a_checkpoint_may_be_called(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs / "old"
    assert resolve_checkpoint("last", run) == run / "last.ckpt"
    assert resolve_checkpoint("best", run) == run / "best.ckpt"
    (run / "previous.ckpt").touch()
    assert resolve_checkpoint("previous", run) == run / "previous.ckpt"
    assert resolve_checkpoint(str(run), None) == run / "last.ckpt"
    assert resolve_checkpoint(str(run / "best.ckpt"), runs / "new") == run / "best.ckpt"
    monkeypatch.chdir(runs.parent)
    monkeypatch.setattr("pathmoe.training.run_folder.newest_run_folder", lambda name: {"last": run}[name])
    assert resolve_checkpoint("last", None) == run / "last.ckpt"


def test_the_best_checkpoint_is_the_last_where_it_is_alone(runs: Path) -> None:
    run = runs / "old"
    (run / "last.ckpt").unlink()
    for ckpt_path in ("last", "best", str(run)):
        assert resolve_checkpoint(ckpt_path, run) == run / "best.ckpt"
    (run / "config.yaml").unlink()
    assert resolve_checkpoint(str(run), None) == run / "best.ckpt"


def test_the_one_before_is_the_last_where_that_is_gone(runs: Path) -> None:
    run = runs / "old"
    (run / "previous.ckpt").touch()
    (run / "last.ckpt").unlink()
    for ckpt_path in ("last", "previous", str(run)):
        assert resolve_checkpoint(ckpt_path, run) == run / "previous.ckpt"


def test_a_sharded_checkpoint_is_a_folder(runs: Path) -> None:
    (runs / "sharded" / "last.ckpt").mkdir(parents=True)
    assert resolve_checkpoint(str(runs / "sharded"), None) == runs / "sharded" / "last.ckpt"
    assert resolve_checkpoint(str(runs / "sharded" / "last.ckpt"), None) == runs / "sharded" / "last.ckpt"


@pytest.mark.parametrize("ckpt_path", ["last", "previous", "best", "{}/started", "{}/no.ckpt"])
def test_a_checkpoint_that_is_not_there(ckpt_path: str, runs: Path) -> None:
    with pytest.raises(ValueError, match=rf"^--ckpt_path \({runs}/.*\.ckpt\) must be an existing checkpoint"):
        resolve_checkpoint(ckpt_path.format(runs), runs / "started")


def test_what_lies_beside_a_checkpoint(runs: Path) -> None:
    checkpoint = runs / "new" / "last.ckpt"
    assert saved_config(checkpoint) == runs / "new" / "config.yaml"
    with pytest.raises(ValueError, match=r"new/tokenizer must lie beside the checkpoint last\.ckpt; copy it there"):
        saved_tokenizer(checkpoint)


def test_a_run_with_a_checkpoint_is_not_overwritten(runs: Path) -> None:
    for ckpt_path in (None, runs / "old" / "last.ckpt"):
        with pytest.raises(
            ValueError, match=r"--run_dir \(.*/new\) must not hold another run; .* --ckpt_path last, or"
        ):
            refuse_another_run(runs / "new", ckpt_path)
    (runs / "new" / "last.ckpt").unlink()
    with pytest.raises(ValueError, match=r"go on with it by --ckpt_path last, or choose another --run_dir$"):
        refuse_another_run(runs / "new", None)


def test_a_run_goes_on_in_its_folder_or_where_there_is_none(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    refuse_another_run(runs / "old", "old/last.ckpt")
    refuse_another_run(Path("old"), runs / "old" / "best.ckpt")
    for run_folder in (runs / "started", runs / "nowhere"):
        refuse_another_run(run_folder, None)
        refuse_another_run(run_folder, runs / "old" / "last.ckpt")


def test_a_run_folder_belongs_to_one_process_until_it_ends(tmp_path: Path) -> None:
    run_folder = tmp_path / "runs" / "some"
    os.close(lock_run_folder(run_folder))
    other = subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, str(run_folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=r"--run_dir \(.*/some\) must not be in use by another process; wait for"):
            lock_run_folder(run_folder)
        other.send_signal(signal.SIGKILL)
    mine = lock_run_folder(run_folder)
    with pytest.raises(ValueError, match="in use"):
        lock_run_folder(run_folder)
    os.close(mine)
    os.close(lock_run_folder(run_folder))


def test_a_run_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for run_folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"^--run_dir \(.*/file.*\) can't be made \(.+\); choose another$"):
            lock_run_folder(run_folder)


def test_a_text_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "config.yaml"
    write_text_atomically(file, "a: 1\n")
    write_text_atomically(file, "b: ä\n")
    assert file.read_text(encoding="utf-8") == "b: ä\n"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_text_atomically(file, "c: 3\n")
    assert file.read_text(encoding="utf-8") == "b: ä\n", "what is not on disk yet replaces nothing"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_text_atomically(file, "c: 3\n")
    assert file.read_text(encoding="utf-8") == "b: ä\n"
    write_text_atomically(file, "d: 4\n")
    assert [path.name for path in file.parent.iterdir()] == ["config.yaml"], "what a killed process left is gone"
