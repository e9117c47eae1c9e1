"""How an error reaches the user: one line with the key, the value, what is allowed and what to change; status 2."""

import importlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pathmoe.config import PathMoEConfig
from pathmoe.training.errors import OnAllRanksError, OneLineParser, fail, one_line, with_one_line_errors


@dataclass
class Inner:
    number: int = 1
    ratio: float = 0.5
    flag: bool = False
    name: Literal["one", "two"] = "one"
    lengths: int | list[int] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    choice: Literal["a", "b"] | Literal[1, 2] | None = None


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)


class Shape:
    def __init__(self, size: int = 1) -> None:
        self.size = size


@pytest.fixture
def parser() -> OneLineParser:
    parser = OneLineParser(prog="program")
    parser.add_argument("--outer", type=Outer, default=Outer())
    parser.add_argument("--shapes", type=list[Shape])
    parser.add_argument("-c", "--config", action="config")
    return parser


REFUSED = [
    (["--outer.inner.number", "four"], r"outer.inner.number (four) must be of type int; change it"),
    (["--outer.inner.number"], r"--outer.inner.number must be followed by a value; add it"),
    (["--outer.inner.ratio=fast"], r"outer.inner.ratio (fast) must be of type float; change it"),
    (["--outer.inner.flag", "maybe"], r"outer.inner.flag (maybe) must be of type bool; change it"),
    (["--outer.inner.name", "three"], r"outer.inner.name (three) must be one of 'one', 'two'; change it"),
    (["--outer.inner.choice", "3"], r"outer.inner.choice (3) must be one of 'a', 'b', 1, 2, null; change it"),
    (["--outer.inner.lengths", "x"], r"outer.inner.lengths (x) must be of type int or list[int] or null; change it"),
    (
        ["--outer.inner.lengths", "[1, x]"],
        r"outer.inner.lengths ([1, 'x']) must be of type int or list[int] or null; change it",
    ),
    (["--outer.inner.pair", "[1]"], r"outer.inner.pair ([1]) must be of type list [...] with 2 elements; change it"),
    (["--outer.inner.nam", "1"], r"--outer.inner.nam (1) is not a known option; did you mean outer.inner.name?"),
    (["--outer.inner.nam=1"], r"--outer.inner.nam (1) is not a known option; did you mean outer.inner.name?"),
    (["--something"], r"--something is not a known option; see --help"),
    (["something", "--else"], r"something is not a known option; see --help"),
    (["--outer.inner", "{nam: 1}"], None),
    (["--shapes", '[{"class_path": "nowhere.Shape"}]'], None),
]


@pytest.mark.parametrize(("arguments", "line"), REFUSED, ids=lambda value: str(value))
def test_what_the_parser_refuses(
    arguments: list[str], line: str | None, parser: OneLineParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line is None or err == f"error: {line}\n"


def test_a_class_that_can_not_be_imported_is_named_with_the_reason(
    parser: OneLineParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--shapes", '[{"class_path": "nowhere.Shape"}]'])
    assert capsys.readouterr().err == (
        "error: shapes: class_path (nowhere.Shape) can't be used (No module named 'nowhere'); change it\n"
    )


def test_no_abbreviation_is_taken_for_an_option(parser: OneLineParser) -> None:
    assert parser.parse_args(["--outer.inner.number", "2"]).outer.inner.number == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--outer.inner.numb", "2"])


@given(st.text())
def test_whatever_the_message_it_is_one_line(message: str) -> None:
    line = one_line(message)
    assert len(line.splitlines()) <= 1
    assert line == line.strip()


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1))
def test_a_message_of_our_own_is_left_as_it_is(word: str) -> None:
    message = f"model.config.num_experts ({word}) must be at least 1; raise it"
    assert one_line(message) == message


def ours() -> None:
    PathMoEConfig(num_experts=0)


def ours_in_several_lines() -> None:
    PathMoEConfig(router_type="a\n  b")


def of_lightning() -> None:
    raise MisconfigurationException("No supported\n  backend found!")


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (lambda: os.mkdir("/"), "/ can't be used (File exists); choose another place"),
        (lambda: open("/"), "/ can't be used (Is a directory); choose another place"),  # noqa: SIM115  # it fails
        (lambda: os.listdir("/no/such"), "/no/such can't be used (No such file or directory); choose another place"),
        (
            lambda: importlib.import_module("no_such_package.inner"),
            "No module named 'no_such_package'; install the package that has it",
        ),
        (ours, "model.config.num_experts (0) must be at least 1; raise it"),
        (
            ours_in_several_lines,
            r"model.config.router_type ('a\n b') must be one of linear, cosine, recurrent; change it",
        ),
        (of_lightning, "trainer: No supported backend found!"),
        (lambda: fail("just so"), "just so"),
    ],
)
def test_the_users_errors_end_in_one_line(
    program: Callable[[], None], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        with_one_line_errors(program)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (lambda: json.loads("{"), ValueError),
        (lambda: torch.zeros(2).view(3), RuntimeError),
        (lambda: PathMoEConfig().no_such_field, AttributeError),
        (lambda: os.write(10**6, b""), OSError),
        (lambda: importlib.import_module("pathmoe.no_such_module"), ModuleNotFoundError),
        (lambda: exec("from json import no_such_name"), ImportError),
    ],
)
def test_faults_keep_their_traceback(program: Callable[[], None], error: type[Exception]) -> None:
    with pytest.raises(error):
        with_one_line_errors(program)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="the system has no disk that is always full")
def test_a_full_disk_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def write_checkpoint() -> None:
        with open("/dev/full", "wb") as file:
            torch.save({"weights": torch.zeros(10**6)}, file)

    with pytest.raises(SystemExit) as end:
        with_one_line_errors(write_checkpoint)
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: the disk can't be written to (No space left on device); make room, or choose another --run_dir\n"
    )


@pytest.mark.parametrize(("rank", "expected"), [(0, "error: the loss is nan\n"), (1, "")])
def test_of_what_all_ranks_see_the_first_one_tells(
    rank: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def program() -> None:
        raise OnAllRanksError("the loss is nan")

    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(SystemExit) as end:
        with_one_line_errors(program)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", expected)


def test_nothing_happens_where_nothing_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[int] = []
    with_one_line_errors(lambda: done.append(1))
    assert done == [1]
    assert capsys.readouterr() == ("", "")
