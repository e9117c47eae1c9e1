"""Documents of local files: .txt (one document a file), .jsonl and .json (one a record), .parquet (one a row)."""

import glob
import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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


def read_file(file: Path, text_key: str) -> Iterator[Document]:
    """Documents of one file, in order, in constant memory but for .txt and .json arrays.

    Raises ValueError naming the file, and the byte, line or row, where text is not UTF-8, not JSON, or lacks text_key.
    """
    if file.suffix == ".txt":
        if whole := _decode(file.read_bytes(), file, offset=0):
            yield Document(whole)
        return
    for number, row in enumerate(read_records(file, [text_key]), start=1):
        if text := text_of(row, text_key, f"{file}, record {number}"):
            yield Document(text)


def read_records(file: Path, keys: Sequence[str]) -> Iterator[Any]:
    """Records of a .jsonl, .json or .parquet file, in order, with these keys at least where they have them.

    Raises ValueError naming the file, and the byte or line, where it is not UTF-8, not JSON or not parquet.
    """
    return _parquet_rows(file, keys) if file.suffix == ".parquet" else _json_records(file)


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


def _json_records(file: Path) -> Iterator[Any]:
    """Records of a JSON-lines file, or of a .json file that holds one array."""
    offset = 0
    with file.open("rb") as lines:
        if file.suffix == ".json" and lines.read(4).removeprefix(BOM_UTF8).startswith(b"["):
            yield from _parse(_decode(file.read_bytes(), file, 0), file, line=1)
            return
        lines.seek(0)
        for number, raw in enumerate(lines, start=1):
            line = _decode(raw, file, offset).strip()
            offset += len(raw)
            if line:
                yield _parse(line, file, number)


def _parse(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"data.source: {file} is not JSON at line {line + error.lineno - 1} ({error.msg}); "
            "fix it: one object a line, or one array in a .json file"
        ) from error
    except RecursionError as error:
        raise ValueError(f"data.source: {file} is nested too deeply at line {line} to be a record; fix it") from error


def _parquet_rows(file: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        table = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"data.source: {file} is not a parquet file ({error}); replace it") from error
    names = table.schema_arrow.names
    columns = list(keys) if set(keys) <= set(names) else names
    try:
        for batch in table.iter_batches(_ROWS_PER_READ, columns=columns):
            yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(f"data.source: {file} holds text that is not UTF-8; write it again as UTF-8") from error
