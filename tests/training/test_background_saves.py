"""Saves beside training: of what was there when they began, one at a time, and no error is lost."""

import subprocess
import sys
from threading import Event
from typing import Any

import pytest
import torch

from pathmoe.training.background_saves import BackgroundSaves


def test_what_is_written_is_what_was_there(tmp_path: Any) -> None:
    weights = torch.arange(6.0).view(2, 3)
    content = {"a": weights, "tied": weights, "row": weights[1], "rest": {"steps": [1, 2]}, "none": None}
    go_on, written = Event(), {}
    saves = BackgroundSaves()

    def write(staged: dict[str, Any]) -> None:
        assert go_on.wait(60)
        torch.save(staged, tmp_path / "staged.pt")
        written.update(staged)

    saves.start(content, write)
    weights += 100
    content["rest"]["steps"].append(3)
    content["more"] = 1
    go_on.set()
    saves.wait()
    expected = torch.arange(6.0).view(2, 3)
    assert written.keys() == {"a", "tied", "row", "rest", "none"}
    assert torch.equal(written["a"], expected) and torch.equal(written["row"], expected[1])
    assert written["rest"] == {"steps": [1, 2]}
    assert written["a"].data_ptr() == written["tied"].data_ptr(), "tied weights are staged, and written, once"
    assert torch.equal(torch.load(tmp_path / "staged.pt", weights_only=True)["row"], expected[1])


def test_the_next_one_waits_for_the_one_before() -> None:
    saves, order, go_on = BackgroundSaves(), [], Event()

    def write(number: int) -> None:
        if number == 1:
            assert go_on.wait(60)
        order.append(number)

    saves.start(1, write)
    assert order == []
    go_on.set()
    saves.start(2, write)
    assert order[0] == 1
    saves.wait()
    assert order == [1, 2]
    saves.wait()


def test_an_error_is_raised_once_by_who_comes_next() -> None:
    saves = BackgroundSaves()

    def fail(_: Any) -> None:
        raise OSError(28, "No space left on device")

    saves.start(None, fail)
    with pytest.raises(OSError, match="No space left"):
        saves.start(None, lambda _: None)
    saves.wait()
    saves.start(None, fail)
    with pytest.raises(OSError, match="No space left"):
        saves.wait()
    saves.wait()


def test_a_program_that_ends_does_not_wait() -> None:
    program = (
        "from threading import Event\n"
        "from pathmoe.training.background_saves import BackgroundSaves\n"
        "BackgroundSaves().start(None, lambda _: Event().wait())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
