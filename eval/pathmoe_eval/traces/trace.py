"""Routing on disk: a folder that is read memory-mapped, chunk by chunk, never whole.

`trace.json` says what was recorded (`TraceHeader`), `tokens.arrow` holds one row a token and `sequences.arrow` one row
a sequence, both in the Arrow IPC file format. `TraceWriter` writes one.
"""

# Shapes: N tokens, L MoE layers, K experts per token, E experts, S sequences or pieces of them.

from __future__ import annotations

import copy
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace_files import RECORD_AGAIN, array_of, arrow_errors, open_arrow, read_sequences
from pathmoe_eval.traces.trace_header import (
    INDEX_FILE,
    TOKENS_FILE,
    Column,
    TraceHeader,
    TraceIndex,
    read_index,
    token_columns,
    tokens_schema,
)


class RoutingTrace:
    """A trace on disk, or the part of it that `first` and `of_domain` select. `open_trace` makes one."""

    def __init__(self, folder: Path, index: TraceIndex) -> None:
        """See `open_trace`, which says what is checked."""
        self.folder = folder
        self.header: TraceHeader = index.header
        self._index = index
        self._columns = token_columns(index.header)
        self._tokens, self._mapped = open_arrow(folder / TOKENS_FILE, index.tokens_bytes, tokens_schema(index.header))
        num_batches = -(-index.num_tokens // index.tokens_per_batch)
        if self._tokens.num_record_batches != num_batches:
            raise ValueError(
                f"{folder / TOKENS_FILE} ({self._tokens.num_record_batches} batches) must hold the {num_batches} of "
                f"num_tokens ({index.num_tokens}) in {INDEX_FILE}; {RECORD_AGAIN}"
            )
        self._is_checked = np.zeros(num_batches, dtype=np.bool_)
        self._batch(num_batches - 1)  # so that one that lacks tokens at its end is refused now
        self._sequences = read_sequences(folder, index)
        ends_S = self._sequences["end"].to_numpy()
        self._starts_S1 = np.concatenate([[0], ends_S])
        self._stop = index.num_tokens
        self._is_kept_S = np.ones(len(ends_S), dtype=np.bool_)

    @property
    def num_tokens(self) -> int:
        """Tokens that are selected."""
        return int(self.sequence_lengths().sum())

    @property
    def num_sequences(self) -> int:
        """Sequences with a token that is selected."""
        return int(np.count_nonzero(self.sequence_lengths()))

    def sequences(self) -> pa.Table:
        """One row for each sequence of the file, whatever is selected: name, domain, and its tokens [start, end).

        `RoutingChunk.sequence_ids_S` are rows of it. The domain is empty where there are none.
        """
        return self._sequences.add_column(2, "start", pa.array(self._starts_S1[:-1]))

    def domains(self) -> tuple[str, ...]:
        """The domains of the selected sequences, in the order in which they first come."""
        kept = self._sequences["domain"].filter(pa.array(self.sequence_lengths() > 0))
        return tuple(kept.unique().to_pylist())

    def first(self, num_tokens: int) -> RoutingTrace:
        """The first `num_tokens` of the tokens that are selected here.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= num_tokens <= self.num_tokens:
            raise ValueError(
                f"num_tokens ({num_tokens}) must be between 1 and {self.num_tokens}, the tokens of {self.folder}; "
                "ask for fewer or record more"
            )
        totals_S = np.cumsum(self.sequence_lengths())
        last = int(np.searchsorted(totals_S, num_tokens))
        selected = copy.copy(self)
        # The selected part of a sequence ends where it does, or where an earlier `first` stopped.
        end = min(int(self._starts_S1[last + 1]), self._stop)
        selected._stop = end - (int(totals_S[last]) - num_tokens)
        return selected

    def of_domain(self, domain: str) -> RoutingTrace:
        """The sequences of one domain, among those that are selected here.

        Raises:
            ValueError: none is of it.
        """
        domains = self.domains()
        if domain not in domains:
            shown = ", ".join(domains[:8]) + (", ..." if len(domains) > 8 else "")
            raise ValueError(f"domain ({domain}) must be one of those of {self.folder} ({shown}); choose one of them")
        selected = copy.copy(self)
        selected._is_kept_S = self._is_kept_S & pc.equal(self._sequences["domain"], domain).to_numpy()
        return selected

    def chunks(self, max_tokens: int = 65536) -> Iterator[RoutingChunk]:
        """The selected tokens in order, as chunks of at most `max_tokens` that hold at least one.

        A chunk never crosses a record batch of the file, so its arrays are read-only views of the mapped file, except
        where tokens of other domains lie between: then they are copies. It may cut a sequence (see `RoutingChunk`).

        Raises:
            ValueError: `max_tokens` below 1; a batch that is damaged, or ids in it that are out of range, each batch
                being checked when it is first read.
        """
        if max_tokens < 1:
            raise ValueError(f"max_tokens ({max_tokens}) must be at least 1; raise it")
        for number in range(len(self._is_checked)):
            first = number * self._index.tokens_per_batch
            stop = min(first + self._index.tokens_per_batch, self._stop)
            if not self._is_kept_S[self._sequences_between(first, stop)].any():
                continue
            arrays = self._batch(number)
            for start in range(first, stop, max_tokens):
                chunk = self._chunk(arrays, first, start, min(start + max_tokens, stop))
                if chunk is not None:
                    yield chunk
            # So that what was read does not count as this process's memory; who looks at it again reads it again.
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def _sequences_between(self, start: int, stop: int) -> slice:
        """Rows of the sequences with tokens in [start, stop)."""
        return slice(
            int(np.searchsorted(self._starts_S1, start, side="right")) - 1,
            max(0, int(np.searchsorted(self._starts_S1, stop, side="left"))),
        )

    def _chunk(self, arrays: dict[str, NDArray[Any]], first: int, start: int, stop: int) -> RoutingChunk | None:
        """The selected tokens among [start, stop) of a batch that begins at the token `first`."""
        rows = self._sequences_between(start, stop)
        is_kept_S = self._is_kept_S[rows]
        if not is_kept_S.any():
            return None
        lengths_S = np.diff(np.clip(self._starts_S1[rows.start : rows.stop + 1], start, stop))
        tokens: slice | NDArray[np.int64] = slice(start - first, stop - first)
        if not is_kept_S.all():
            tokens = np.flatnonzero(np.repeat(is_kept_S, lengths_S)) + (start - first)
        return RoutingChunk(
            **{name: values[tokens] for name, values in arrays.items()},
            starts_S1=np.concatenate([[0], np.cumsum(lengths_S[is_kept_S])]),
            sequence_ids_S=np.flatnonzero(is_kept_S) + rows.start,
            first_position=start - int(self._starts_S1[rows.start]) if is_kept_S[0] else 0,
        )

    def sequence_lengths(self) -> NDArray[np.int64]:
        """How many tokens of each sequence of the file are selected, int64 [sequences]."""
        return np.where(self._is_kept_S, np.diff(np.minimum(self._starts_S1, self._stop)), 0)

    def _batch(self, number: int) -> dict[str, NDArray[Any]]:
        """The arrays of a record batch, by their names in `RoutingChunk`; checked when it is first read."""
        file = self.folder / TOKENS_FILE
        with arrow_errors(file):
            batch = self._tokens.get_batch(number)
            batch.validate()
        first = number * self._index.tokens_per_batch
        num_rows = min(self._index.tokens_per_batch, self._index.num_tokens - first)
        if batch.num_rows != num_rows or any(column.null_count for column in batch.columns):
            raise ValueError(
                f"{file} ({batch.num_rows} tokens in batch {number}) must hold {num_rows} there, by {INDEX_FILE}; "
                f"{RECORD_AGAIN}"
            )
        arrays = {
            column.attribute: array_of(values, column)
            for column, values in zip(self._columns, batch.columns, strict=True)
        }
        if not self._is_checked[number]:
            for column in self._columns:
                self._check_range(column, arrays[column.attribute], first)
            self._is_checked[number] = True
        return arrays

    def _check_range(self, column: Column, values: NDArray[Any], first: int) -> None:
        if column.dtype.kind == "f":
            return
        key = "num_experts" if column.name == "expert_ids" else "vocab_size"
        limit = getattr(self.header, key)
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest >= limit:
            wrong = lowest if lowest < 0 else highest
            token = first + int(np.argwhere(values == wrong)[0, 0])
            raise ValueError(
                f"{self.folder / TOKENS_FILE}: {column.name} ({wrong}, token {token}) must be at least 0 and below "
                f"{key} ({limit}) in {INDEX_FILE}; {RECORD_AGAIN}"
            )


def open_trace(folder: str | Path) -> RoutingTrace:
    """Open a trace for reading.

    Its structure is checked here, at a cost that grows with the sequences, not with the tokens: trace.json, the sizes
    of the files, their columns, the number of tokens, and where sequences end. Ids are checked as they are read.

    Raises:
        ValueError: no trace is there; one of another format version; a file that was cut short; columns or tokens
            that differ from the header; sequences that do not ascend or do not end at the last token.
    """
    folder = Path(folder)
    return RoutingTrace(folder, read_index(folder))
