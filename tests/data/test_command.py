import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pathmoe.data import command
from pathmoe.data.datamodule import TokenDataModule
from pathmoe.data.tokenizer import train_bpe
from pathmoe.training.errors import with_one_line_errors

Say = Callable[..., tuple[str, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a source of some pieces and a configuration of a run on it."""
    texts = [f"text number {number} of this source " * (number % 9) for number in range(1, 400)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    train_bpe(texts, 300).save_pretrained(str(tmp_path / "tokenizer"))
    data = {
        "source": str(tmp_path / "a.jsonl"), "tokenizer": str(tmp_path / "tokenizer"), "sequence_length": 32,
        "shard_size": 20_000, "cache_dir": str(tmp_path / "cache"), "streaming": True, "validation_documents": 9,
        "global_batch_size": 512,
    }  # fmt: skip
    config = {"seed_everything": 3, "model": {"config": {"vocab_size": 512}}, "data": data, "trainer": {"max_steps": 9}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Calls the command line with one worker; what it prints, and the error, if that is how it ends."""

    def call(*arguments: str | Path) -> tuple[str, str]:
        try:
            with_one_line_errors(lambda: command.run([*map(str, arguments), "--num_workers", "1"]))
        except SystemExit as end:
            assert end.code == 2
        printed = capsys.readouterr()
        return printed.out, printed.err

    return call


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fit_finds_what_was_prepared(source: Path, say: Say) -> None:
    out, err = say("prepare", "--config", source / "run.yaml")
    assert not err and "prepared in " in out and "100 B tokens: " in out and " tokens/s, " in out
    before = content(source / "cache")
    settings = yaml.safe_load((source / "run.yaml").read_text())["data"] | {"streaming": False, "micro_batch_size": 512}
    data = TokenDataModule(**settings, vocab_size=512, seed=3)
    data.prepare_data()
    data.setup("fit")
    assert content(source / "cache") == before
    assert len(data.train_blocks.files) > 2
    assert f"{data.manifest.train.tokens:,} tokens" in out if data.manifest.train else False


def test_flags_win_over_configurations_and_later_ones_over_earlier(source: Path, say: Say) -> None:
    (source / "more.yaml").write_text("data:\n  sequence_length: 16\n  shard_size: 1000000\n")
    files = ("--config", source / "run.yaml", f"--config={source / 'more.yaml'}")
    out, err = say("prepare", *files, "--data.shard_size", "500000")
    assert not err and "sequence length 16" in out
    out, err = say("verify", *files, "--data.shard_size=500000")
    assert out.startswith("2 files, ") and not err
    _, err = say("verify", *files)
    assert err.startswith("error: data.cache_dir (") and err.endswith("prepare it\n")


def test_verify_names_all_that_is_not_what_was_written(source: Path, say: Say) -> None:
    run = ("--config", source / "run.yaml")
    say("prepare", *run)
    out, _ = say("verify", *run)
    assert "all as they were written" in out
    (folder,) = (source / "cache" / "prepared").iterdir()
    before = content(folder)
    altered, gone = folder / "train" / "00001.arrow", folder / "train" / "00002.arrow"
    altered.write_bytes(altered.read_bytes()[:-1] + b"x")
    gone.unlink()
    _, err = say("verify", *run)
    assert err.count("\n") == 1
    assert f"({altered} was altered after it was prepared; {gone} is missing from the prepared data); remove" in err
    altered.unlink()
    out, err = say("prepare", *run)
    assert not err and "train/00001.arrow, " in out and "train/00000.arrow, " not in out
    assert content(folder) == before


def test_an_estimate_writes_nothing(source: Path, say: Say) -> None:
    out, err = say("prepare", "--config", source / "run.yaml", "--estimate", "0.01")
    assert not err and "100 B tokens: " in out and "this source: " in out
    assert not (source / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepared",), "the command (prepared) must be one of prepare, verify; give it first"),
        (("prepare", "--config", "no-such"), "--config (no-such) must be a file or one shipped config"),
        (("prepare", "--data.sorce", "x"), "--data.sorce (x) is not a known option; did you mean data.source?"),
        (
            ("prepare", "--data.vocab_size", "9"),
            "--data.vocab_size must not be given, since it follows model.config.voc",
        ),
        (("prepare", "--data.shard_size", "0"), "data.shard_size (0) must be at least 1; raise it"),
        (("prepare", "--data.source", "no/such.jsonl"), "data.source (no/such.jsonl) names no file that is there"),
        (("prepare", "--estimate", "0"), "--estimate (0.0) must be more than 0 megabytes; raise it"),
    ],
)
def test_wrong_input_ends_in_one_line(say: Say, arguments: tuple[str, ...], message: str) -> None:
    _, err = say(*arguments)
    assert err.startswith(f"error: {message}") and err.count("\n") == 1


def test_too_few_workers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        with_one_line_errors(lambda: command.run(["prepare", "--num_workers", "0"]))
    assert capsys.readouterr().err == "error: --num_workers (0) must be at least 1; raise it\n"


def test_a_command_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        with_one_line_errors(lambda: command.run([]))
    assert capsys.readouterr().err == "error: the command () must be one of prepare, verify; give it first\n"


def processes_in(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink() == folder:
                found.append(int(process.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_preparation_that_is_stopped_or_killed_goes_on_and_leaves_no_process(source: Path, say: Say) -> None:
    texts = [f"document {number}: " + f"{number * 7919} " * (number % 400) for number in range(1200)]
    (source / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    run = ("prepare", "--config", str(source / "run.yaml"), "--data.shard_size", "50000")
    out, _ = say(*run, "--data.cache_dir", source / "whole")
    arguments = [sys.executable, "-m", "pathmoe.data", *run, "--num_workers", "2"]
    place = source / "killed"
    place.mkdir()
    for signal_number, finished, group in ((signal.SIGINT, 2, True), (signal.SIGKILL, 4, False)):
        stopped = subprocess.Popen(
            arguments, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while len(list((source / "cache").rglob("done/*.json"))) < finished:
            assert stopped.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        (os.killpg if group else os.kill)(stopped.pid, signal_number)
        _, err = stopped.communicate()
        assert err == "stopped\n" or not group, err
        assert not list((source / "cache").rglob("manifest.json")), "it was stopped before the end"
        while processes_in(place):
            assert time.monotonic() < deadline, "workers outlive the process that started them"
            time.sleep(0.01)
    rest, err = say(*run)
    assert not err
    number_of_shards = out.count(".arrow, ")
    assert 0 < rest.count(".arrow, ") <= number_of_shards - 4
    whole, resumed = content(source / "whole" / "prepared"), content(source / "cache" / "prepared")
    assert whole == resumed and len(whole) > number_of_shards > 20
    assert os.listdir(source / "cache" / "surveys")
