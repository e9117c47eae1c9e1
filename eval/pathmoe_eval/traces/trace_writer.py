"""Writing a trace as a stream, in memory that does not grow with it: beside its place, then renamed into it."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts, S pieces of sequences in a chunk.

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pathmoe_eval.id_range import check_id_range
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace_header import (
    INDEX_FILE,
    SEQUENCES_FILE,
    SEQUENCES_SCHEMA,
    TOKENS_FILE,
    Column,
    TraceHeader,
    TraceIndex,
    token_columns,
    tokens_schema,
)
from pathmoe_eval.traces.unfinished import begin_beside

_MAX_BATCH_TOKENS = 1 << 16
_MAX_BATCH_BYTES = 1 << 26
_SEQUENCES_PER_BATCH = 1 << 14


class TraceWriter:
    """Writes the folder of one trace.

    The folder appears when `close` has written all of it, or the `with` block ends without an exception; until then,
    and after a kill, there is only a hidden one beside it, `.NAME-...`, that no reader takes for a trace. The next
    writer of the same folder removes what killed ones have left, and nothing of one that lives.
    """

    def __init__(self, folder: str | Path, header: TraceHeader) -> None:
        """Begin a trace.

        Args:
            folder: where the trace will be: a new folder, or an empty one.
            header: what `append` will bring.

        Raises:
            ValueError: the folder holds another trace or anything else, or JSON can't write the header.
        """
        self.folder = Path(folder).resolve()
        self.header = header
        self.num_tokens = 0
        self.num_sequences = 0
        _check_is_free(self.folder)
        self._columns = token_columns(header)
        bytes_per_token = sum(column.dtype.itemsize * column.size for column in self._columns)
        self._batch_size = min(_MAX_BATCH_TOKENS, max(1, _MAX_BATCH_BYTES // bytes_per_token))
        self._index(tokens_bytes=0, sequences_bytes=0).to_json()  # what can't be written fails here, not hours later
        self._pending = [np.empty((self._batch_size, *column.shape), dtype=column.dtype) for column in self._columns]
        self._names: list[str] = []
        self._domains: list[str] = []
        self._begins: list[int] = []

        self._beside, self._lock = begin_beside(self.folder, TOKENS_FILE)
        self._tokens = _ArrowFile(self._beside / TOKENS_FILE, tokens_schema(header))
        self._sequences = _ArrowFile(self._beside / SEQUENCES_FILE, SEQUENCES_SCHEMA)
        self._is_open = True

    def append(self, chunk: RoutingChunk, names: Sequence[str], domains: Sequence[str]) -> None:
        """Add the tokens of a chunk.

        Args:
            chunk: arrays of any integer or float type. One whose `first_position` is not 0 goes on with the sequence
                that the chunk before it ended in. Its `sequence_ids_S` are not used: sequences count from 0 as they
                come.
            names: the name of each sequence that begins in the chunk.
            domains: the domain of each, empty where there are none.

        Raises:
            ValueError: shapes that differ from the header's, ids out of range, an array that the header promises and
                the chunk lacks, another number of names or domains, or a part of a sequence that does not fit.
        """
        begins_S = chunk.starts_S1[:-1] if chunk.first_position == 0 else chunk.starts_S1[1:-1]
        self._check_sequences(chunk, len(begins_S), names, domains)
        for column in self._columns:
            self._check_column(column, getattr(chunk, column.attribute))
        self._begins += (begins_S + self.num_tokens).tolist()
        self._names += names
        self._domains += domains
        self.num_sequences += len(begins_S)
        done = 0
        while done < chunk.num_tokens:
            used = self.num_tokens % self._batch_size
            count = min(chunk.num_tokens - done, self._batch_size - used)
            for column, pending in zip(self._columns, self._pending, strict=True):
                pending[used : used + count] = getattr(chunk, column.attribute)[done : done + count]
            done += count
            self.num_tokens += count
            if used + count == self._batch_size:
                self._write_tokens(self._batch_size)
        if len(self._begins) > _SEQUENCES_PER_BATCH:
            self._write_sequences(len(self._begins) - 1)

    def close(self) -> None:
        """Write what is left and put the trace in its place.

        Raises:
            ValueError: nothing was appended, or the place is taken by now. Nothing is left behind then.
        """
        if not self._is_open:
            return
        try:
            if self.num_tokens == 0:
                raise ValueError(f"{self.folder} (0 tokens) must hold at least 1; record more data")
            if rest := self.num_tokens % self._batch_size:
                self._write_tokens(rest)
            self._write_sequences(len(self._begins))
            index = self._index(tokens_bytes=self._tokens.close(), sequences_bytes=self._sequences.close())
            with (self._beside / INDEX_FILE).open("w", encoding="utf-8") as file:
                file.write(index.to_json())
                file.flush()
                os.fsync(file.fileno())
            _check_is_free(self.folder)
            self._beside.rename(self.folder)
        finally:
            self.discard()

    def discard(self) -> None:
        """Leave nothing of a trace that is not closed."""
        self._is_open = False
        self._tokens.abandon()
        self._sequences.abandon()
        shutil.rmtree(self._beside, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _index(self, *, tokens_bytes: int, sequences_bytes: int) -> TraceIndex:
        return TraceIndex(
            header=self.header,
            num_tokens=self.num_tokens,
            num_sequences=self.num_sequences,
            tokens_per_batch=self._batch_size,
            tokens_bytes=tokens_bytes,
            sequences_bytes=sequences_bytes,
        )

    def _check_sequences(
        self, chunk: RoutingChunk, num_begins: int, names: Sequence[str], domains: Sequence[str]
    ) -> None:
        for key, values in (("names", names), ("domains", domains)):
            if len(values) != num_begins:
                raise ValueError(
                    f"{key} ({len(values)}) must be one for each of the {num_begins} sequences that begin in the "
                    "chunk; leave out the one that goes on from the chunk before"
                )
        open_tokens = self.num_tokens - self._begins[-1] if self._begins else 0
        if chunk.first_position not in (0, open_tokens):
            raise ValueError(
                f"first_position ({chunk.first_position}) must be 0 or {open_tokens}, the tokens so far of the "
                "sequence that goes on; append the parts of a sequence in order"
            )

    def _check_column(self, column: Column, values: NDArray[Any] | None) -> None:
        if values is None:
            raise ValueError(
                f"{column.attribute} (missing) must be in each chunk; set has_{column.name} to False to go without"
            )
        kinds = "f" if column.dtype.kind == "f" else "iu"
        if values.shape[1:] != column.shape or values.dtype.kind not in kinds:
            wanted = ", ".join(["tokens", *map(str, column.shape)])
            raise ValueError(
                f"{column.attribute} ({values.dtype} {list(values.shape)}) must be {column.dtype} [{wanted}]; "
                "make the header and the chunk agree"
            )
        if column.dtype.kind == "f" or values.size == 0:
            return
        key = "num_experts" if column.name == "expert_ids" else "vocab_size"
        check_id_range(
            values,
            getattr(self.header, key),
            name=column.attribute,
            limit_name=key,
            advice=f"leave out padding and pass the model's {key}",
        )

    def _write_tokens(self, count: int) -> None:
        arrays = []
        for column, pending, column_type in zip(self._columns, self._pending, self._tokens.schema.types, strict=True):
            values = pa.array(pending[:count].reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=column_type) if column.shape else values)
        self._tokens.write(arrays)

    def _write_sequences(self, count: int) -> None:
        ends = [*self._begins[1:], self.num_tokens][:count]
        self._sequences.write([pa.array(self._names[:count]), pa.array(self._domains[:count]), pa.array(ends)])
        for values in (self._names, self._domains, self._begins):
            del values[:count]


class _ArrowFile:
    """An Arrow IPC file while it is written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._file = path.open("wb")
        self._writer = pa.ipc.new_file(self._file, schema)

    def write(self, arrays: list[pa.Array]) -> None:
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self.schema))

    def close(self) -> int:
        """Make it whole and on disk; its bytes."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        return size

    def abandon(self) -> None:
        """Let go of it, whole or not; a full disk is no news then."""
        with contextlib.suppress(OSError):
            if not self._file.closed:
                self._writer.close()
        self._file.close()


def _check_is_free(folder: Path) -> None:
    if folder.is_dir():
        entries = sorted(entry.name for entry in folder.iterdir())
        if not entries:
            return
        found = "another trace" if INDEX_FILE in entries else f"{entries[0]}"
    elif folder.exists():
        found = "a file"
    else:
        return
    raise ValueError(f"{folder} ({found}) must be a new or an empty folder; choose another, or remove it")
