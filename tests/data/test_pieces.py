import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.pieces import Piece, cut_source, read_piece
from pathmoe.data.sources import Source, read_documents

TEXTS = [f"text {number} äöü " * (number % 7) for number in range(100)]


def documents(pieces: list[Piece]) -> list[str]:
    return [document.text for piece in pieces for document in read_piece(piece)]


def whole(source: Source) -> list[str]:
    return [document.text for document in read_documents(source)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind."""
    folder = tmp_path_factory.mktemp("files")
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.jsonl").write_text("\ufeff" + "\n\n".join(lines[:9]) + "\n")
    (folder / "c.json").write_text(json.dumps([{"text": text} for text in TEXTS[:20]]))
    pq.write_table(pa.table({"text": TEXTS, "other": [0] * 100}), folder / "d.parquet", row_group_size=7)
    for number in range(5):
        (folder / f"e{number}.txt").write_text(f"file {number} " * 30)
    return folder


@pytest.mark.parametrize("num_bytes", [1, 50, 700, 10**9])
def test_pieces_are_the_source_in_order(folder: Path, num_bytes: int) -> None:
    source = Source(source=str(folder))
    pieces = cut_source(source, num_bytes)
    assert documents(pieces) == whole(source)
    assert (len(pieces) == 1) == (num_bytes == 10**9)
    assert cut_source(source, num_bytes) == pieces
    assert len({piece.stamp for piece in pieces}) == len(pieces)


@given(lines=st.lists(st.text(max_size=30), max_size=15), num_bytes=st.integers(1, 200))
def test_lines_are_in_the_piece_in_which_they_begin(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], num_bytes: int
) -> None:
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    file.write_text("\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines) + "\n")
    source = Source(source=str(file))
    pieces = cut_source(source, num_bytes)
    assert documents(pieces) == [line for line in lines if line]
    assert sum(piece.num_bytes or 0 for piece in pieces) == file.stat().st_size
    assert all(0 < (piece.num_bytes or 0) <= num_bytes for piece in pieces)


def test_small_files_share_a_piece_and_what_cannot_be_cut_is_in_one(folder: Path) -> None:
    texts = cut_source(Source(source=str(folder / "e*.txt")), 600)
    assert [len(piece.spans) for piece in texts] == [2, 2, 1]
    assert len(cut_source(Source(source=str(folder / "c.json")), 10)) == 1
    assert len(cut_source(Source(source=str(folder / "d.parquet")), 1)) == 15  # row groups
    assert len(cut_source(Source(), 1)) == len(cut_source(Source(source="c-functions", num_documents=9), 1)) == 1


def test_rows_of_a_data_set_with_splits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text((folder / "a.jsonl").read_text())
    source = Source(source=str(tmp_path / "hub"))
    pieces = cut_source(source, 500)
    assert len(pieces) > 3 and documents(pieces) == whole(source)


def test_a_change_of_a_file_changes_its_stamp_only(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text((folder / "a.jsonl").read_text())
    source = Source(source=str(tmp_path))
    before = [piece.stamp for piece in cut_source(source, 8000)]
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write("\n")
    after = [piece.stamp for piece in cut_source(source, 8000)]
    assert len(before) == len(after) == 2
    assert before[0] == after[0] and before[1] != after[1]


def test_an_error_names_the_line_also_in_a_later_piece(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[90] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"a\.jsonl is not JSON at line 91 "):
        documents(cut_source(Source(source=str(tmp_path / "a.jsonl")), 500))
