"""Opening the Arrow files of a trace, and refusing what is not whole."""

# Shapes: S sequences.

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pathmoe_eval.traces.trace_header import INDEX_FILE, SEQUENCES_FILE, SEQUENCES_SCHEMA, Column, TraceIndex

RECORD_AGAIN = "it was cut short or changed, so copy or record the trace again"


def open_arrow(file: Path, num_bytes: int, schema: pa.Schema) -> tuple[pa.RecordBatchFileReader, mmap.mmap]:
    """Map an Arrow IPC file into memory; its reader, and the map that the reader's arrays point into.

    Raises:
        ValueError: it is not there, has other than `num_bytes` bytes, is no such file, or has another schema.
    """
    if not file.is_file():
        raise ValueError(
            f"{file} (not there) must lie beside {INDEX_FILE}; copy the whole folder of the trace, or record it again"
        )
    found = file.stat().st_size
    if found != num_bytes:
        raise ValueError(f"{file} ({found} bytes) must have the {num_bytes} bytes of {INDEX_FILE}; {RECORD_AGAIN}")
    with file.open("rb") as source:
        # Arrow's own map would do, but can't be told to let go of pages.
        mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    with arrow_errors(file):
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
        columns, expected = (", ".join(f"{item.name} {item.type}" for item in each) for each in (reader.schema, schema))
    if not reader.schema.equals(schema):
        raise ValueError(f"{file} ({columns}) must hold {expected}, by {INDEX_FILE}; {RECORD_AGAIN}")
    return reader, mapped


def read_sequences(folder: Path, index: TraceIndex) -> pa.Table:
    """The table of a trace's sequences: name, domain, end.

    Raises:
        ValueError: the file is not whole, holds other than `index.num_sequences`, or their ends do not ascend to
            `index.num_tokens`.
    """
    file = folder / SEQUENCES_FILE
    reader, _ = open_arrow(file, index.sequences_bytes, SEQUENCES_SCHEMA)
    with arrow_errors(file):
        sequences = reader.read_all()
        sequences.validate(full=True)
    if len(sequences) != index.num_sequences or any(column.null_count for column in sequences.columns):
        raise ValueError(
            f"{file} ({len(sequences)} sequences) must hold num_sequences ({index.num_sequences}) in {INDEX_FILE}; "
            f"{RECORD_AGAIN}"
        )
    ends_S = sequences["end"].to_numpy()
    if not (ends_S[0] > 0 and np.all(np.diff(ends_S) > 0) and ends_S[-1] == index.num_tokens):
        raise ValueError(
            f"{file}: end ({ends_S[0]} to {ends_S[-1]}) must ascend from above 0 to num_tokens ({index.num_tokens}); "
            f"{RECORD_AGAIN}"
        )
    return sequences


def array_of(values: pa.Array, column: Column) -> NDArray[Any]:
    """A token column of a record batch as a read-only array, without a copy."""
    flat = values.values if column.shape else values
    return flat.to_numpy(zero_copy_only=True).reshape(-1, *column.shape)


@contextmanager
def arrow_errors(file: Path) -> Iterator[None]:
    """Turn what Arrow says about a file that it can't read into one line."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} ({reason}) must be a whole Arrow file; {RECORD_AGAIN}") from error
