"""One shard: the documents of one part tokenised and packed into one file."""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from pathmoe.data.blocks import block_features
from pathmoe.data.cache import write_json
from pathmoe.data.packed_split import pack_split
from pathmoe.data.packing import token_dtype
from pathmoe.data.shards import Shard, file_sha256, written_beside
from pathmoe.data.splits import Part, read_parts
from pathmoe.data.tokenizer import fingerprint, load_tokenizer

_TOKENS_PER_RECORD_BATCH = 2**23
"""Readers hold a little of every record batch in memory, writers a whole one."""


class ShardJob(NamedTuple):
    """What a worker needs to write a shard."""

    part: Part
    tokenizer: str
    """Folder or name."""
    tokenizer_sha256: str
    sequence_length: int
    folder: Path
    name: str
    """Place within the folder."""

    @property
    def record(self) -> Path:
        """File that says that the shard is there, and what is in it."""
        return self.folder / "done" / self.name.replace("/", "-").replace(".arrow", ".json")


def write_shard(job: ShardJob) -> Shard:
    """Write the file of a shard, then its record, each in one step; a function of the part and the tokenizer alone."""
    tokenizer = _tokenizer(job.tokenizer, job.tokenizer_sha256)
    schema = block_features(job.sequence_length, token_dtype(len(tokenizer))).arrow_schema
    texts = (document.text for document in read_parts([job.part]))
    with written_beside(job.folder / job.name) as beside:
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            batches = _RecordBatches(writer, _TOKENS_PER_RECORD_BATCH // (job.sequence_length + 1) + 1)
            counts = pack_split(texts, tokenizer, job.sequence_length, batches.add)
            batches.flush()
        shard = Shard(name=job.name, size=beside.stat().st_size, sha256=file_sha256(beside), counts=counts)
    write_json(job.record, asdict(shard))
    return shard


class _RecordBatches:
    """Gathers tables into record batches of at least so many blocks."""

    def __init__(self, writer: pa.ipc.RecordBatchStreamWriter, num_blocks: int) -> None:
        self.writer = writer
        self.num_blocks = num_blocks
        self._tables: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        if sum(map(len, self._tables)) >= self.num_blocks:
            self.flush()

    def flush(self) -> None:
        if self._tables:
            self.writer.write_table(pa.concat_tables(self._tables).combine_chunks())
        self._tables = []


@lru_cache(maxsize=1)
def _tokenizer(name: str, sha256: str) -> PreTrainedTokenizerBase:
    """Loaded once a process. Raises ValueError where it has changed since the preparation began."""
    tokenizer = load_tokenizer(name)
    if fingerprint(tokenizer) != sha256:
        raise ValueError(f"data.tokenizer ({name}) has changed while it was used; prepare again")
    return tokenizer
