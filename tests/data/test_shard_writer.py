import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pathmoe.data import shard_writer
from pathmoe.data.blocks import Blocks
from pathmoe.data.packed_split import pack_split
from pathmoe.data.pieces import cut_source
from pathmoe.data.shard_writer import ShardJob, write_shard
from pathmoe.data.shards import Shard, find_fault
from pathmoe.data.sources import Source
from pathmoe.data.splits import Part
from pathmoe.data.tokenizer import fingerprint, train_bpe

TEXTS = [f"text number {number} " * 6 for number in range(60)]
TOKENIZER = train_bpe(TEXTS, 280)


@pytest.fixture
def job(tmp_path: Path) -> ShardJob:
    """Every third document of a file."""
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    TOKENIZER.save_pretrained(str(tmp_path / "tokenizer"))
    (piece,) = cut_source(Source(source=str(file)), 10**9)
    part = Part(piece, np.arange(60) % 3 == 0)
    folder = tmp_path / "out"
    return ShardJob(part, str(tmp_path / "tokenizer"), fingerprint(TOKENIZER), 16, folder, "train/00003.arrow")


def test_a_shard_holds_the_blocks_of_its_documents(job: ShardJob) -> None:
    shard = write_shard(job)
    tables: list[pa.Table] = []
    assert shard.counts == pack_split(TEXTS[::3], TOKENIZER, 16, tables.append)
    ours, expected = Blocks.open(job.folder / shard.name), Blocks.in_memory(tables)
    everything = np.arange(shard.counts.blocks)
    assert len(ours) == len(expected) == shard.counts.blocks > 20
    for key, value in expected.batch(everything).items():
        assert ours.batch(everything)[key].equal(value)


def test_its_record_says_what_was_written(job: ShardJob) -> None:
    shard = write_shard(job)
    assert Shard.from_json(json.loads(job.record.read_text())) == shard
    assert find_fault((job.folder, shard)) is None
    assert sorted(path.name for path in job.folder.rglob("*") if path.is_file()) == ["00003.arrow", "train-00003.json"]


def test_record_batches_are_large_whatever_the_batches_of_texts(job: ShardJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathmoe.data.packed_split._CHARACTERS_PER_BATCH", 100)
    whole = write_shard(job)
    monkeypatch.setattr(shard_writer, "_TOKENS_PER_RECORD_BATCH", 17 * 4)
    pieces = write_shard(job._replace(name="train/00004.arrow"))
    assert pieces.counts == whole.counts
    lengths = [[len(batch) for batch in pa.ipc.open_stream(job.folder / shard.name)] for shard in (whole, pieces)]
    assert lengths[0] == [whole.counts.blocks]
    assert len(lengths[1]) > 3 and all(length > 4 for length in lengths[1][:-1])


def test_a_part_without_documents_is_a_file_without_blocks(job: ShardJob) -> None:
    shard = write_shard(job._replace(part=Part(job.part.piece, np.zeros(60, dtype=bool))))
    assert (shard.counts.blocks, shard.counts.documents) == (0, 0)
    assert len(Blocks.open(job.folder / shard.name)) == 0


def test_a_tokenizer_that_changed_is_refused(job: ShardJob) -> None:
    with pytest.raises(
        ValueError, match=r"data\.tokenizer \(.*/tokenizer\) has changed while it was used; prepare again"
    ):
        write_shard(job._replace(tokenizer_sha256="0" * 64))
    assert not job.folder.exists() or not list(job.folder.rglob("*.arrow"))
