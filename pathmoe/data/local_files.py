"""Documents of local files: .txt (one document a file), .jsonl and .json (one a record), .parquet (one a row)."""

import glob
import json
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pathmoe.data.document import Document

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
_ROWS_PER_READ = 1024


def find_files(source: str | list[str]) -> list[Path]:
    """Files named by a path, a folder (searched through), a glob, or a list of these, sorted within each.

    Raises ValueError where one names nothing, a file of another kind, or an empty file.
    """
    files: list[Path] = []
    for entry in [source] if isinstance(source, str) else source:
        path = Path(entry).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        else:
            found = [path] if path.is_file() else [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            raise ValueError(
                f"data.source ({entry}) names no file that is there; give a {', '.join(SUFFIXES)} file, a folder or a "
                "glob of them, python-stdlib, c-functions, or the name of a hub data set"
            )
        files += found
    if not files:
        raise ValueError("data.source ([]) must name a file at least; add one")
    for file in files:
        if file.suffix not in SUFFIXES:
            raise ValueError(f"data.source: {file} must end in one of {', '.join(SUFFIXES)}; convert or rename it")
        if file.stat().st_size == 0:
            raise ValueError(f"data.source: {file} is empty; remove it from the source or fill it")
    return files


class Span(NamedTuple):
    """A part of a file: the lines of .jsonl that begin within these bytes, these row groups of .parquet, or the whole
    of any other, whatever the numbers."""

    file: Path
    start: int
    stop: int


def cut_file(file: Path, num_bytes: int) -> list[tuple[Span, int]]:
    """Spans that make up a file in order, each with its bytes: about `num_bytes` at most where the file can be cut.

    .jsonl is cut anywhere, .parquet (whose bytes are those before compression) between row groups. Raises ValueError
    where it is not parquet.
    """
    if file.suffix == ".parquet":
        metadata = _open_parquet(file).metadata
        sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        return [(Span(file, number, number + 1), size) for number, size in enumerate(sizes)]
    size = file.stat().st_size
    num_spans = -(-size // num_bytes) if file.suffix == ".jsonl" else 1
    edges = [size * number // num_spans for number in range(num_spans + 1)]
    return [(Span(file, start, stop), stop - start) for start, stop in pairwise(edges)]


def read_file(file: Path, text_key: str) -> Iterator[Document]:
    """Documents of one file, in order; see `read_span`."""
    return read_span(Span(file, 0, sys.maxsize), text_key)


def read_span(span: Span, text_key: str) -> Iterator[Document]:
    """Documents of a span, in order, in constant memory but for .txt and .json arrays.

    Raises ValueError naming the file, and the byte, line or row, where text is not UTF-8, not JSON, or lacks text_key.
    """
    file = span.file
    if file.suffix == ".txt":
        if whole := _decode(file.read_bytes(), file, offset=0):
            yield Document(whole)
        return
    place = f" of its part from {span.start} on" if span.start else ""
    for number, row in enumerate(_records(span, [text_key]), start=1):
        if text := text_of(row, text_key, f"{file}, record {number}{place}"):
            yield Document(text)


def read_records(file: Path, keys: Sequence[str]) -> Iterator[Any]:
    """Records of a .jsonl, .json or .parquet file, in order, with these keys at least where they have them.

    Raises ValueError naming the file, and the byte or line, where it is not UTF-8, not JSON or not parquet.
    """
    return _records(Span(file, 0, sys.maxsize), keys)


def _records(span: Span, keys: Sequence[str]) -> Iterator[Any]:
    return _parquet_rows(span, keys) if span.file.suffix == ".parquet" else _json_records(span)


def text_of(row: Any, text_key: str, where: str) -> str | None:
    """The text of a record, None where it holds null. Raises ValueError naming the keys if text_key is not one."""
    if not isinstance(row, dict):
        raise ValueError(f"data.source: {where} must be a JSON object with the key data.text_key ({text_key}); fix it")
    if text_key not in row:
        raise ValueError(
            f"data.text_key ({text_key}) must be one of the keys of {where} ({', '.join(row)}); set data.text_key"
        )
    text = row[text_key]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"data.text_key ({text_key}) must name text, but {where} holds {type(text).__name__}; set data.text_key"
        )
    if text is not None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"data.source: {where} holds half a surrogate pair, which is not text; fix it") from error
    return text


def _decode(raw: bytes, file: Path, offset: int) -> str:
    """The text of a file from a byte on, without the mark that some programs put at the beginning of a file."""
    try:
        text = raw.decode("utf-8")
        return text if offset else text.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.source: {file} is not UTF-8 at byte {offset + error.start} ({error.reason}); convert it to UTF-8"
        ) from error


def _json_records(span: Span) -> Iterator[Any]:
    """Records of a span of a JSON-lines file, or of a .json file that holds one array."""
    file, offset, stop = span
    with file.open("rb") as lines:
        if file.suffix == ".json" and lines.read(4).removeprefix(BOM_UTF8).startswith(b"["):
            yield from _parse(_decode(file.read_bytes(), file, 0), file, 0)
            return
        # A line that began before belongs to the span before.
        lines.seek(max(0, offset - 1))
        offset = max(0, offset - 1) + len(lines.readline()) if offset else 0
        for raw in lines:
            if offset >= stop:
                return
            line = _decode(raw, file, offset).strip()
            if line:
                yield _parse(line, file, offset)
            offset += len(raw)


def _parse(text: str, file: Path, offset: int) -> Any:
    """The value that a text, which begins at this byte of the file, holds."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"data.source: {file} is not JSON at line {_line_at(file, offset) + error.lineno - 1} ({error.msg}); "
            "fix it: one object a line, or one array in a .json file"
        ) from error
    except RecursionError as error:
        line = _line_at(file, offset)
        raise ValueError(f"data.source: {file} is nested too deeply at line {line} to be a record; fix it") from error


def _line_at(file: Path, offset: int) -> int:
    """Number of the line that begins at a byte, from 1 on."""
    with file.open("rb") as lines:
        return 1 + sum(1 for _ in takewhile(lambda _: lines.tell() <= offset, iter(lines.readline, b"")))


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"data.source: {file} is not a parquet file ({error}); replace it") from error


def _parquet_rows(span: Span, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    file = span.file
    table = _open_parquet(file)
    names = table.schema_arrow.names
    columns = list(keys) if set(keys) <= set(names) else names
    row_groups = list(range(span.start, min(span.stop, table.num_row_groups)))
    try:
        for batch in table.iter_batches(_ROWS_PER_READ, row_groups=row_groups, columns=columns):
            yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(f"data.source: {file} holds text that is not UTF-8; write it again as UTF-8") from error
