import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathmoe.data.c_functions import c_program
from pathmoe.data.python_stdlib import python_stdlib
from pathmoe.data.sources import Source, read_documents, stream_documents


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def hub_folder(root: Path) -> str:
    """A data set as the hub lays it out: a card with two configurations, parquet files by split."""
    files = {
        "big/train-00000-of-00002.parquet": ["a0", "a1"],
        "big/train-00001-of-00002.parquet": ["a2", None, "a3"],
        "big/test-00000-of-00001.parquet": ["t0"],
        "small/train-00000-of-00001.parquet": ["s0"],
    }
    for name, column in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"body": column, "id": list(range(len(column)))}), path)
    configs = [
        {
            "config_name": "big",
            "data_files": [
                {"split": "train", "path": "big/train-*.parquet"},
                {"split": "test", "path": "big/test-*.parquet"},
            ],
        },
        {"config_name": "small", "data_files": "small/*.parquet"},
    ]
    (root / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n# Tiny\n")
    return str(root)


def both_ways(source: Source) -> list[str]:
    """The texts of a source, which must be the same read through and streamed."""
    read = [document.text for document in read_documents(source)]
    assert [row["text"] for row in stream_documents(source) if row["text"]] == read
    return read


def test_python_stdlib_is_the_default() -> None:
    assert both_ways(Source()) == [document.text for document in python_stdlib()]


def test_c_functions_of_any_number() -> None:
    assert both_ways(Source(source="c-functions", num_documents=5)) == [c_program(0, index) for index in range(5)]


@pytest.mark.parametrize(
    ("subset", "split", "expected"),
    [("big", "train", ["a0", "a1", "a2", "a3"]), ("big", "test", ["t0"]), ("small", "train", ["s0"])],
)
def test_a_hub_data_set_by_subset_and_split(tmp_path: Path, subset: str, split: str, expected: list[str]) -> None:
    source = Source(source=hub_folder(tmp_path / "tiny"), subset=subset, split=split, text_key="body")
    assert both_ways(source) == expected


def test_a_folder_with_files_named_by_split_is_laid_out_like_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "x"}\n')
    (folder / "test.jsonl").write_text('{"text": "y"}\n')
    assert both_ways(Source(source=str(folder))) == ["x"]
    assert both_ways(Source(source=str(folder), split="test")) == ["y"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["README.md", "training_notes.txt", "b.txt"], "# Notes\n"),
        (["README.md"], "---\nlicense: mit\n---\n# Notes about configs:\n"),
        (["README.md"], "---\n- configs\n---\n"),
        (["README.md"], "---\n{configs: \n---\n"),
        (["train.md", "trained.txt", "data/training.txt", "data/train/notes.md"], ""),
    ],
)
def test_a_folder_of_files_is_not_taken_for_a_hub_data_set(tmp_path: Path, names: list[str], text: str) -> None:
    for name in ["a.txt", *names]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text if name.endswith(".md") else f"{name}\nand a second line\n")
    source = Source(source=str(tmp_path))
    assert not source.has_splits
    files = sorted(name for name in ["a.txt", *names] if name.endswith(".txt"))
    assert both_ways(source) == [f"{name}\nand a second line\n" for name in files], "a file is a document"


@pytest.mark.parametrize(
    "name", ["train-00000-of-00001.parquet", "train.csv", "train/0.jsonl", "train_1.json", "data/train.jsonl.zst"]
)
def test_the_layout_of_the_hub_shows_in_files_of_the_train_split(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert Source(source=str(tmp_path)).has_splits


def test_a_card_marks_the_layout_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\ndataset_info:\n  features: []\n---\n")
    assert Source(source=str(tmp_path)).has_splits


def test_local_files_are_shards_of_a_stream(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    source = Source(source=str(tmp_path))
    assert both_ways(source) == ["text 0", "text 1", "text 2"]
    assert stream_documents(source).num_shards == 3


def test_a_hub_data_set_lacking_the_text_key_is_refused(tmp_path: Path) -> None:
    source = Source(source=hub_folder(tmp_path / "tiny"), subset="small")
    for read in (read_documents, stream_documents):
        with pytest.raises(
            ValueError, match=r"data\.text_key \(text\) must be one of the columns of .*: body, id; set"
        ):
            next(iter(read(source)))


@pytest.mark.parametrize(("subset", "split"), [("nothing", "train"), ("small", "nothing")])
def test_a_subset_or_split_that_is_not_there_is_refused(tmp_path: Path, subset: str, split: str) -> None:
    source = Source(source=hub_folder(tmp_path / "tiny"), subset=subset, split=split, text_key="body")
    for read in (read_documents, stream_documents):
        with pytest.raises(ValueError, match=r"data\.source \(.*\) could not be loaded \(.*nothing"):
            next(iter(read(source)))


def test_missing_files_are_refused_by_both_ways(tmp_path: Path) -> None:
    source = Source(source=str(tmp_path / "missing.jsonl"))
    for read in (read_documents, stream_documents):
        with pytest.raises(ValueError, match=r"missing\.jsonl\) names no file that is there"):
            next(iter(read(source)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_documents": 5}, r"data\.num_documents \(5\) must be null unless data\.source \(python-stdlib\) is c-f"),
        ({"source": "c-functions", "num_documents": 0}, r"data\.num_documents \(0\) must be at least 1; raise it"),
        ({"split": "test"}, r"data\.split \(test\) must not be set where data\.source \(python-stdlib\) has none"),
        ({"source": ["a.txt"], "subset": "x"}, r"data\.subset \(x\) must not be set where data\.source"),
    ],
)
def test_settings_that_a_source_would_ignore_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Source(**arguments)
