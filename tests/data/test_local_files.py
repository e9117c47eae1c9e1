import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathmoe.data.local_files import find_files, read_file, read_records


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(path: Path, text_key: str = "text") -> list[str]:
    return [document.text for document in read_file(path, text_key)]


def test_each_kind_of_file_gives_its_documents(tmp_path: Path) -> None:
    rows = [{"text": "eins", "n": 1}, {"text": "zwei ü"}, {"text": ""}, {"text": None}]
    lines = "\n".join(json.dumps(row) for row in rows)
    assert texts(write(tmp_path / "a.txt", "eins\nzwei\n")) == ["eins\nzwei\n"]
    assert texts(write(tmp_path / "a.jsonl", f"{lines}\n\n")) == ["eins", "zwei ü"]
    assert texts(write(tmp_path / "lines.json", lines)) == ["eins", "zwei ü"]
    assert texts(write(tmp_path / "array.json", json.dumps(rows, indent=1))) == ["eins", "zwei ü"]
    pq.write_table(pa.table({"other": [1, 2, 3], "body": ["eins", None, "zwei ü"]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", "body") == ["eins", "zwei ü"]


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^data\.source \(\[\]\) must name a file at least; add one$"):
        find_files([])


def test_records_without_an_end_to_their_depth_are_refused(tmp_path: Path) -> None:
    deep = write(tmp_path / "deep.jsonl", '{"text": "a"}\n' + "[" * 100_000)
    with pytest.raises(
        ValueError, match=r"^data\.source: .*deep\.jsonl is nested too deeply at line 2 to be a record; fix"
    ):
        texts(deep)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    records = [{"text": "eins"}, {"text": "\ufeffzwei"}]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    for name, content, found in (
        ("a.txt", "eins \ufeff", ["eins \ufeff"]),
        ("none.txt", "", []),
        ("a.jsonl", lines, ["eins", "\ufeffzwei"]),
        ("lines.json", lines, ["eins", "\ufeffzwei"]),
        ("array.json", json.dumps(records, ensure_ascii=False), ["eins", "\ufeffzwei"]),
    ):
        assert texts(write(tmp_path / name, content.encode("utf-8-sig"))) == found
    with pytest.raises(ValueError, match=r"is not UTF-8 at byte 4 \("):
        texts(write(tmp_path / "bad.txt", b"\xef\xbb\xbfa\xff"))


def test_records_have_the_keys_asked_for_or_all_of_them(tmp_path: Path) -> None:
    rows = [{"text": "eins", "topic": "a", "n": 1}, {"text": "zwei", "topic": "b", "n": 2}]
    lines = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_records(lines, ["text"])) == rows
    assert list(read_records(tmp_path / "a.parquet", ["text", "topic"])) == [
        {"text": row["text"], "topic": row["topic"]} for row in rows
    ]
    # All of them, so that an error can name them.
    assert list(read_records(tmp_path / "a.parquet", ["text", "other"])) == rows


def test_a_path_a_folder_a_glob_and_a_list_find_files(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "b/deep/3.jsonl", "b/readme.md", "c.txt"):
        write(tmp_path / name, "x")
    one, two, three, other = (tmp_path / name for name in ("b/1.txt", "b/2.txt", "b/deep/3.jsonl", "c.txt"))
    assert find_files(str(one)) == [one]
    assert find_files(str(tmp_path / "b")) == [one, two, three]
    assert find_files(str(tmp_path / "b" / "*.txt")) == [one, two]
    assert find_files(str(tmp_path / "**" / "*.txt")) == [one, two, other]
    assert find_files([str(other), str(tmp_path / "b")]) == [other, one, two, three]


@pytest.mark.parametrize("name", ["missing.txt", "missing/*.jsonl"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"data\.source \(.*missing.*\) names no file that is there; give"):
        find_files(str(tmp_path / name))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "x")
    empty = write(tmp_path / "b.txt", "")
    with pytest.raises(ValueError, match=rf"data\.source: {empty} is empty"):
        find_files(str(tmp_path))


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.csv must end in one of \.txt, \.jsonl, \.json, \.parquet"):
        find_files(str(write(tmp_path / "a.csv", "text\nx\n")))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_text_that_is_not_utf8_is_refused_with_its_byte(tmp_path: Path, name: str) -> None:
    good = '{"text": "gut: ü"}\n'.encode()
    file = write(tmp_path / name, good + b'{"text": "schlecht: \xfc"}\n')
    with pytest.raises(ValueError, match=rf"data\.source: {file} is not UTF-8 at byte {len(good) + 20} "):
        texts(file)


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xfc")])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet holds text that is not UTF-8"):
        texts(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_missing_text_key_is_refused_and_the_keys_named(tmp_path: Path, name: str) -> None:
    if name == "a.parquet":
        pq.write_table(pa.table({"body": ["x"], "url": ["y"]}), tmp_path / name)
    else:
        write(tmp_path / name, '{"body": "x", "url": "y"}\n')
    with pytest.raises(
        ValueError, match=rf"data\.text_key \(text\) must be one of the keys of .*{name}.* \(body, url\)"
    ):
        texts(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}\n{"text": \n', r"a\.jsonl is not JSON at line 2 "),
        ('{"text": "x"}\n["text"]\n', r"a\.jsonl, record 2 must be a JSON object with the key data\.text_key"),
        ('{"text": 3}\n', r"data\.text_key \(text\) must name text, but .*a\.jsonl, record 1 holds int"),
        ('{"text": "\\ud800"}\n', r"a\.jsonl, record 1 holds half a surrogate pair"),
    ],
)
def test_broken_records_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        texts(write(tmp_path / "a.jsonl", content))


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.parquet is not a parquet file"):
        texts(write(tmp_path / "a.parquet", "no"))
