"""A command line to call, data small enough to train on in a second, and one finished run that tests share."""

import contextlib
import io
import json
import random
import shutil
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from docstring_parser.attrdoc import AttributeDocstrings

MINI_CONFIG = {
    "model": {
        "config": {
            "vocab_size": 300,
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "moe_intermediate_size": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        "optimizer": {"name": "muon", "lr": 0.003, "muon_lr": 0.004},
        "schedule": {"name": "wsd", "warmup_steps": 1, "decay_fraction": 0.5},
    },
    "data": {"validation_fraction": 0.3, "sequence_length": 32, "micro_batch_size": 2},
    "trainer": {
        "max_steps": 4,
        "val_check_interval": 2,
        "limit_val_batches": 3,
        "accumulate_grad_batches": 1,
        "log_every_n_steps": 1,
    },
    "checkpoint_every_n_steps": 2,
}


class Ended(NamedTuple):
    """How a call of the command line ended."""

    status: int
    out: str
    err: str


CommandLine = Callable[..., Ended]

# A parser reads and parses the source of all classes that it shows docstrings of; once is enough for all tests.
attribute_docstrings = cache(partial(AttributeDocstrings.get_attr_docs, AttributeDocstrings()))


def call(*arguments: str | Path, cwd: Path) -> Ended:
    """Call the command line in this process, in the folder `cwd`."""
    from pathmoe.training.cli import main

    out, err = io.StringIO(), io.StringIO()
    status: str | int | None = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["train.py"])
        patch.setattr(AttributeDocstrings, "get_attr_docs", staticmethod(attribute_docstrings))
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
    return Ended(int(status or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small text files."""
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "router", "expert", "path", "token", "layer", "block"]
    for number in range(8):
        (folder / f"{number}.txt").write_text(" ".join(rng.choices(words, k=400)))
    return folder


@pytest.fixture(scope="session")
def short_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of short documents, so that blocks differ in their number of targets."""
    file = tmp_path_factory.mktemp("documents") / "short.jsonl"
    texts = [" ".join(f"{number * place % 97}" for place in range(number % 11)) for number in range(1, 600)]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return file


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """A configuration file to give after `tiny`: a shape, a run and data that take no time."""
    file = tmp_path_factory.mktemp("configs") / "mini.yaml"
    data = MINI_CONFIG["data"] | {"source": str(texts)}
    file.write_text(yaml.safe_dump(MINI_CONFIG | {"data": data}))
    return file


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """Calls the command line, in the test's own folder."""
    return lambda *arguments: call(*arguments, cwd=tmp_path)


@pytest.fixture
def fit(command_line: CommandLine, mini: Path) -> CommandLine:
    """Calls `fit` with the mini configuration, in the test's own folder."""
    return lambda *more: command_line("fit", "--config", "tiny", "--config", "path_b4", "--config", mini, *more)


class FinishedRun(NamedTuple):
    """A run of the mini configuration."""

    folder: Path
    out: str


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, mini: Path) -> FinishedRun:
    """One for all tests, which must not write into it."""
    cwd = tmp_path_factory.mktemp("finished")
    ended = call("fit", "--config", "tiny", "--config", "path_b4", "--config", mini, cwd=cwd)
    assert ended.status == 0, ended.err
    return FinishedRun(cwd / "runs" / "tiny-path_b4-mini", ended.out)


@pytest.fixture
def run_copy(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """The folder of that run, copied where this test may write."""
    return Path(shutil.copytree(finished_run.folder, tmp_path / "copy"))
