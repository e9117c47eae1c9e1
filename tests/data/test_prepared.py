"""Opening what was prepared: what is missing or cut is refused before anything is read, what was altered when it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pathmoe.data.preparation import prepare
from pathmoe.data.prepared import open_prepared
from pathmoe.data.recipe import Recipe
from pathmoe.data.shards import read_shards
from pathmoe.data.sources import Source


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of several shards, some of them without a block; not to be written to."""
    folder = tmp_path_factory.mktemp("prepared")
    texts = [f"text number {number} " * (number % 11) for number in range(1, 200)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    recipe = Recipe(
        source=Source(source=str(folder / "a.jsonl")), validation_split=None, validation_fraction=0.1,
        tokenizer="train-bpe", vocab_size=280, sequence_length=64, shard_size=3000,
    )  # fmt: skip
    (place,) = prepare([recipe], folder / "cache")
    return place


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def test_shards_are_one_split(folder: Path) -> None:
    opened = open_prepared(folder)
    shards = read_shards(folder)
    assert opened.manifest.train is not None and len(shards) > 10
    assert min(shard.counts.blocks for shard in shards) == 0
    for split, blocks in (("train", opened.train), ("validation", opened.validation)):
        of_split = [shard for shard in shards if shard.split == split]
        assert len(blocks) == sum(shard.counts.blocks for shard in of_split)
        assert blocks.num_targets(np.arange(len(blocks))).sum() == sum(shard.counts.targets for shard in of_split)
    assert opened.manifest.train.blocks == len(opened.train)


def largest(folder: Path) -> Path:
    return folder / max(read_shards(folder), key=lambda shard: shard.counts.blocks).name


def test_a_missing_shard_is_refused_by_name(folder: Path) -> None:
    gone = largest(folder)
    gone.unlink()
    with pytest.raises(ValueError, match=rf"^{gone} is missing from the prepared data; remove .*pathmoe\.data prepare"):
        open_prepared(folder)


def test_a_shard_that_was_cut_is_refused_by_name(folder: Path) -> None:
    cut = largest(folder)
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(ValueError, match=rf"^{cut} has [\d,]+ bytes, not the [\d,]+ prepared; remove the file"):
        open_prepared(folder)


def test_what_is_no_arrow_file_is_refused_by_name(folder: Path) -> None:
    wrong = largest(folder)
    wrong.write_bytes(b"x" * wrong.stat().st_size)
    with pytest.raises(ValueError, match=rf"^{wrong} is no file of prepared data \("):
        open_prepared(folder)


@pytest.mark.parametrize("column", ["tokens", "document_starts", "num_targets", "crc32"])
def test_a_flipped_bit_is_refused_by_name_when_its_block_is_read(folder: Path, column: str) -> None:
    altered = largest(folder)
    values = pa.ipc.open_stream(altered).read_next_batch().column(column)
    buffer = (values if column in ("num_targets", "crc32") else values.flatten()).buffers()[1].to_pybytes()
    content = bytearray(altered.read_bytes())
    content[content.index(buffer) + 5] ^= 1
    altered.write_bytes(content)
    blocks = open_prepared(folder).train
    refused = []
    for index in range(len(blocks)):
        try:
            blocks.batch(np.array([index]))
        except ValueError as error:
            refused.append(str(error))
    (message,) = refused
    assert (
        message.startswith(f"{altered} was altered after it was prepared (block ") and "pathmoe.data prepare" in message
    )
