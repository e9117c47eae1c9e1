"""A source cut into pieces that processes read side by side; one after the other they are the whole source."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from datasets import Dataset

from pathmoe.data.cache import hash_of
from pathmoe.data.document import Document
from pathmoe.data.local_files import Span, cut_file, find_files, read_span
from pathmoe.data.sources import C_FUNCTIONS, PYTHON_STDLIB, Source, load_rows, read_documents, read_rows


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some consecutive documents of a source; those of a built-in source are not cut."""

    source: Source
    num_bytes: int | None
    """Bytes of the source, not all of which need be text; None where it is built in."""
    stamp: str
    """Changes with the place, size and time of what is read; "" where it is built in, which has none."""
    spans: tuple[Span, ...] = ()
    """Of local files."""
    rows: tuple[int, int] | None = None
    """The first row and the one after the last, of a data set with named splits."""


def cut_source(source: Source, num_bytes: int) -> list[Piece]:
    """Pieces of about `num_bytes` of the source at most, a function of these two and of the sizes of the files alone.

    What can't be cut (a row group of parquet, a .txt file, a .json array) is in one piece, however large; smaller files
    share one. Raises ValueError as `read_documents` does, as far as it shows without reading.
    """
    if source.source in (PYTHON_STDLIB, C_FUNCTIONS):
        return [Piece(source=source, num_bytes=None, stamp="")]
    if source.has_splits:
        return _cut_rows(source, num_bytes)
    pieces: list[Piece] = []
    spans: list[Span] = []
    size = 0
    for file in find_files(source.source):
        for span, span_bytes in cut_file(file, num_bytes):
            if spans and size + span_bytes > num_bytes:
                pieces.append(_of_spans(source, spans, size))
                spans, size = [], 0
            spans.append(span)
            size += span_bytes
    return [*pieces, _of_spans(source, spans, size)]


def read_piece(piece: Piece) -> Iterator[Document]:
    """Documents of a piece that are not empty, in order, in constant memory; errors as of `read_documents`."""
    if piece.rows is not None:
        return read_rows(piece.source, load_rows(piece.source, streaming=False), *piece.rows)
    if piece.spans:
        return (document for span in piece.spans for document in read_span(span, piece.source.text_key))
    return read_documents(piece.source)


def _of_spans(source: Source, spans: list[Span], num_bytes: int) -> Piece:
    places = [(*_file_stamp(span.file), span.start, span.stop) for span in spans]
    stamp = hash_of(source.text_key, places)
    return Piece(source=source, num_bytes=num_bytes, stamp=stamp, spans=tuple(spans))


def _cut_rows(source: Source, num_bytes: int) -> list[Piece]:
    dataset: Dataset = load_rows(source, streaming=False)
    size, num_rows = dataset.data.nbytes, len(dataset)
    files = [_file_stamp(Path(file["filename"])) for file in dataset.cache_files]
    num_pieces = max(1, min(num_rows, -(-size // num_bytes)))
    edges = [num_rows * number // num_pieces for number in range(num_pieces + 1)]
    return [
        Piece(
            source=source,
            num_bytes=size // num_pieces,
            stamp=hash_of(source.text_key, files, start, stop),
            rows=(start, stop),
        )
        for start, stop in pairwise(edges)
    ]


def _file_stamp(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file.resolve()), status.st_size, status.st_mtime_ns
