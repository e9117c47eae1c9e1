"""Prepared data that is not what was prepared ends a run in one line that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pathmoe.data import TokenDataModule
from pathmoe.data.preparation import find_prepared

CommandLine = Callable[..., Any]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Settings of data in several shards, and the cache that holds it; not to be written to."""
    folder = tmp_path_factory.mktemp("data")
    texts = [" ".join(str(number * place % 97) for place in range(number % 50)) for number in range(1, 300)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    settings = {"source": str(folder / "a.jsonl"), "sequence_length": 32, "micro_batch_size": 2, "shard_size": 6000}
    data = TokenDataModule(**settings, validation_fraction=0.3, vocab_size=300, cache_dir=str(folder / "cache"))
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_blocks.files) > 3
    return settings, folder / "cache"


@pytest.fixture
def run(prepared: tuple[dict, Path], tmp_path: Path, fit: CommandLine) -> tuple[CommandLine, Path]:
    """Calls `fit` on a copy of that data; the folder with its shards of train."""
    settings, cache = prepared
    own = Path(shutil.copytree(cache, tmp_path / "cache"))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": settings | {"cache_dir": str(own)}}))
    data = TokenDataModule(**settings, validation_fraction=0.3, vocab_size=300, cache_dir=str(own))
    (folder,) = find_prepared(data.recipes, own)
    return lambda *more: fit("--config", tmp_path / "data.yaml", *more), folder / "train"


def test_whole_data_is_trained_on(run: tuple[CommandLine, Path]) -> None:
    fit, _ = run
    assert fit().status == 0


def test_a_missing_shard_stops_the_run_before_it_begins(run: tuple[CommandLine, Path], tmp_path: Path) -> None:
    fit, shards = run
    (shards / "00001.arrow").unlink()
    ended = fit()
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert ended.err.startswith(
        f"error: {shards / '00001.arrow'} is missing from the prepared data; remove the file and"
    )
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_shard_that_was_cut_stops_the_run_before_it_begins(run: tuple[CommandLine, Path], tmp_path: Path) -> None:
    fit, shards = run
    content = (shards / "00002.arrow").read_bytes()
    (shards / "00002.arrow").write_bytes(content[: len(content) // 2])
    ended = fit()
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert ended.err.startswith(f"error: {shards / '00002.arrow'} has ") and "bytes, not the" in ended.err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_altered_shard_stops_the_run_where_it_is_read(run: tuple[CommandLine, Path], num_workers: int) -> None:
    fit, shards = run
    for shard in shards.glob("*.arrow"):
        content = bytearray(shard.read_bytes())
        # The tokens come first, after the schema; every block of the first half is altered.
        content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
        shard.write_bytes(content)
    ended = fit("--data.num_workers", str(num_workers), "--trainer.max_steps", "20")
    assert ended.status == 2, ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert f"error: {shards}/0" in line and " was altered after it was prepared (block " in line
