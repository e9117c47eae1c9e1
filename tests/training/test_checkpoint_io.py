"""Checkpoint files: whole or not there, whatever happens while they are written, and free of code."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.training.background_saves import BackgroundSaves
from pathmoe.training.checkpoint_io import (
    AtomicCheckpointIO,
    check_checkpoint,
    fill_weights,
    read_checkpoint,
    saved_settings,
    saved_step,
)
from pathmoe.training.checkpoint_names import SaveOptions

CONTENT = {
    "pathmoe": {},
    "state_dict": {"w": torch.arange(12.0).view(3, 4)},
    "step": 3,
    "name": "x",
    "rates": [0.1, None],
}

# Forks a writer of its own for each path that it is told, so that many can be killed for the price of one import.
WRITERS = """
import os, sys, torch
from pathmoe.training.checkpoint_io import AtomicCheckpointIO
for path in map(str.strip, sys.stdin):
    writer = os.fork()
    if writer == 0:
        step = 0
        while True:
            step += 1
            content = {"pathmoe": {}, "step": step, "w": torch.full((50_000,), float(step))}
            AtomicCheckpointIO().save_checkpoint(content, path)
    print(writer, flush=True)
    os.waitpid(writer, 0)
"""


def write(content: Any, path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(content, path)
    return path


def assert_same(content: dict[str, Any]) -> None:
    assert content.keys() == CONTENT.keys()
    torch.testing.assert_close(content["state_dict"], CONTENT["state_dict"], rtol=0, atol=0)
    assert all(content[name] == CONTENT[name] for name in ("pathmoe", "step", "name", "rates"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(CONTENT, tmp_path / "new" / "folder" / "last.ckpt")
    assert_same(read_checkpoint(path))
    assert_same(AtomicCheckpointIO().load_checkpoint(str(path)))
    assert_same(torch.load(path, weights_only=True))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(CONTENT, tmp_path / "last.ckpt")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write({"state_dict": CONTENT, "code": lambda: None}, path)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "fsync", _disk_full)
        write({"step": 4}, path)
    assert_same(read_checkpoint(path))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def _disk_full(descriptor: int) -> None:
    raise OSError("disk full")


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "last.ckpt"
    steps = []
    command = [sys.executable, "-c", WRITERS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writers:
        assert writers.stdin is not None and writers.stdout is not None
        for _ in range(25):
            path.unlink(missing_ok=True)
            writers.stdin.write(f"{path}\n")
            writers.stdin.flush()
            writer = int(writers.stdout.readline())
            while not path.exists():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(writer, signal.SIGKILL)
            content = read_checkpoint(path)
            assert torch.equal(content["w"], torch.full((50_000,), float(content["step"])))
            steps.append(content["step"])
            assert {file.name for file in tmp_path.iterdir()} <= {"last.ckpt", ".last.ckpt.partial"}
        writers.stdin.close()
    assert max(steps) > 1, "no file was ever replaced"
    write(CONTENT, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"], "what a killed writer left is gone"


@pytest.fixture(scope="module")
def checkpoint_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(CONTENT, tmp_path_factory.mktemp("whole") / "last.ckpt").read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "last.ckpt"


@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused(kept: float, checkpoint_bytes: bytes, place: Path) -> None:
    place.write_bytes(checkpoint_bytes[: int(kept * len(checkpoint_bytes))])
    refused(place)


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, place: Path) -> None:
    place.write_bytes(content)
    refused(place)


def refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--ckpt_path \(.*/last\.ckpt\) must be a whole checkpoint, .*") as error:
        read_checkpoint(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"state_dict": {}}])
def test_what_another_program_wrote_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(
        ValueError, match=r"other\.ckpt\) must be a checkpoint that this program wrote, but it holds no"
    ):
        read_checkpoint(tmp_path / "other.ckpt")


class Dangerous:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("echo run",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_checkpoint_is_not_run(protocol: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": Dangerous()}, path, pickle_protocol=protocol)
    for weights_only in (None, False):
        with pytest.raises(ValueError, match="must be a whole checkpoint"):
            AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("in_background", [False, True])
def test_other_names_are_given_with_it(in_background: bool, tmp_path: Path) -> None:
    background = BackgroundSaves() if in_background else None
    for step in (1, 2):
        names = SaveOptions(tmp_path / "previous.ckpt", tmp_path / f"step={step}.ckpt", background)
        AtomicCheckpointIO().save_checkpoint(CONTENT | {"step": step}, tmp_path / "last.ckpt", names)
    if background:
        background.wait()
    steps = {path.name: read_checkpoint(path)["step"] for path in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 2, "previous.ckpt": 1, "step=1.ckpt": 1, "step=2.ckpt": 2}


def test_weights_are_read_alone(tmp_path: Path) -> None:
    path = write(CONTENT, tmp_path / "last.ckpt")
    weights = {"w": torch.zeros(3, 4, dtype=torch.float64)}
    fill_weights(path, weights)
    assert torch.equal(weights["w"], torch.arange(12.0, dtype=torch.float64).view(3, 4))
    for names in ({}, {"w", "v"}, {"v"}):
        with pytest.raises(ValueError, match=r"but its weights and its model\.config disagree on [vw];"):
            fill_weights(path, {name: torch.zeros(3, 4) for name in names})


def test_settings_are_read_without_tensors(tmp_path: Path) -> None:
    content = saved_settings(write(CONTENT, tmp_path / "last.ckpt"))
    assert {name: content[name] for name in ("step", "name", "rates")} == {"step": 3, "name": "x", "rates": [0.1, None]}


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = write(CONTENT, tmp_path / "last.ckpt")
    content = path.read_bytes()
    path.write_bytes(content[:-200] + bytes([content[-200] ^ 1]) + content[-199:])
    for read in (read_checkpoint, check_checkpoint, lambda path: fill_weights(path, {"w": torch.zeros(3, 4)})):
        with pytest.raises(
            ValueError, match=r"must be a whole checkpoint, but it was altered \(CRC-32 [0-9a-f]{8} of "
        ):
            read(path)


def test_the_step_is_read_alone(tmp_path: Path) -> None:
    assert saved_step(write(CONTENT | {"global_step": 7}, tmp_path / "last.ckpt")) == 7
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:100])
    with pytest.raises(ValueError, match="must be a whole checkpoint"):
        saved_step(tmp_path / "cut.ckpt")


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "no.ckpt", tmp_path):
        with pytest.raises(ValueError, match=r"^--ckpt_path \(.*\) must be an existing checkpoint, a file or a sha"):
            read_checkpoint(path)
