import json
import os
import sysconfig
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest

from pathmoe.data import preparation, splits
from pathmoe.data.document import Document
from pathmoe.data.manifest import Manifest
from pathmoe.data.prepared import open_prepared
from pathmoe.data.recipe import Recipe
from pathmoe.data.sources import Source, read_documents
from pathmoe.data.tokenizer import fingerprint, load_tokenizer, train_bpe

RECIPE = Recipe(
    source=Source(source="c-functions", num_documents=200),
    validation_split=None,
    validation_fraction=0.1,
    tokenizer="train-bpe",
    vocab_size=300,
    sequence_length=64,
)


def prepare(recipe: Recipe, cache: Path) -> Path:
    (folder,) = preparation.prepare([recipe], cache)
    return folder


def split_documents(recipe: Recipe, cache: Path) -> tuple[list[Document], list[Document]]:
    """Train and validation documents."""
    (found,) = splits.split_documents([recipe], cache)
    return list(splits.read_parts(found.train)), list(splits.read_parts(found.validation))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def with_files(folder: Path, texts: list[str]) -> Recipe:
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    return replace(RECIPE, source=Source(source=str(folder)))


def test_blocks_decode_to_the_documents(cache: Path) -> None:
    prepared = open_prepared(prepare(RECIPE, cache))
    train, validation = split_documents(RECIPE, cache)
    for blocks, documents in ((prepared.train, train), (prepared.validation, validation)):
        inputs = blocks.batch(np.arange(len(blocks)))["input_ids"].flatten().tolist()
        decoded = prepared.tokenizer.decode(inputs)
        ends = prepared.tokenizer.eos_token
        assert "".join(f"{ends}{document.text}{ends}" for document in documents).startswith(decoded)
        assert len(decoded) > 1000


def test_no_validation_text_is_in_python_stdlib_training_documents(cache: Path) -> None:
    train, validation = split_documents(replace(RECIPE, source=Source(), validation_fraction=0.05), cache)
    assert not {document.group for document in train} & {document.group for document in validation}
    assert not {document.text for document in train} & {document.text for document in validation}
    everything = list(read_documents(Source()))
    # Nothing is lost but copies of validation documents.
    texts = {document.text for document in validation}
    assert train == [d for d in everything if d.text not in texts]
    groups = {document.group for document in validation}
    assert validation == [d for d in everything if d.group in groups]
    share = sum(len(d.text.encode()) for d in validation) / sum(len(d.text.encode()) for d in everything)
    assert 0.04 < share <= 0.05


def test_a_copy_of_a_validation_text_is_not_trained_on(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    recipe = with_files(files, [f"text {number % 20} " * 50 for number in range(60)])
    train, validation = ({d.text for d in side} for side in split_documents(recipe, tmp_path))
    assert validation and not train & validation
    assert len(train | validation) == 20


def test_the_tokenizer_is_trained_on_the_train_documents_only(tmp_path: Path) -> None:
    prepared = open_prepared(prepare(RECIPE, tmp_path))
    (folder,) = (tmp_path / "tokenizers").iterdir()
    train, _ = split_documents(RECIPE, tmp_path)
    expected = train_bpe((document.text for document in train), 300)
    assert fingerprint(prepared.tokenizer) == fingerprint(load_tokenizer(str(folder))) == fingerprint(expected)
    everything = train_bpe((document.text for document in read_documents(RECIPE.source)), 300)
    assert fingerprint(prepared.tokenizer) != fingerprint(everything)


def test_a_second_preparation_writes_nothing(cache: Path) -> None:
    folder = prepare(RECIPE, cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert prepare(RECIPE, cache) == folder
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_the_cache_is_keyed_by_content(tmp_path: Path) -> None:
    files, cache = tmp_path / "files", tmp_path / "cache"
    files.mkdir()
    recipe = with_files(files, [f"text number {number} " * 40 for number in range(20)])
    first = prepare(recipe, cache)
    moved = tmp_path / "moved"
    files.rename(moved)
    assert prepare(replace(recipe, source=Source(source=str(moved))), cache) == first
    (moved / "000.txt").write_text("another text " * 40)
    assert prepare(replace(recipe, source=Source(source=str(moved))), cache) != first
    for change in ({"sequence_length": 32}, {"vocab_size": 290}, {"validation_fraction": 0.3}):
        assert prepare(replace(recipe, source=Source(source=str(moved)), **change), cache) != first


def test_the_cache_is_keyed_by_the_groups_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same texts in the same order: once each a group of its own, once in packages of five.
    folders = []
    for name, file in (("alone", "m{0:02}.py"), ("packages", "p{1}/m{0:02}.py")):
        library = tmp_path / name
        for number in range(20):
            path = library / file.format(number, number // 5)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"text number {number} " * 40)
        monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(library)}.get)
        folders.append(prepare(replace(RECIPE, source=Source()), tmp_path / "cache"))
    manifests = [Manifest.read(folder / "manifest.json") for folder in folders]
    assert [manifest.validation.documents for manifest in manifests] == [2, 5]


def test_a_recipe_is_keyed_by_where_its_paths_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for name in ("here", "there"):
        (tmp_path / name / "tokenizer").mkdir(parents=True)
        (tmp_path / name / "files").mkdir()
        monkeypatch.chdir(tmp_path / name)
        sources: list[str | list[str]] = ["files", "files/*.txt", "a.txt", ["a.txt", "b.txt"]]
        keys |= {replace(RECIPE, source=Source(source=source)).key for source in sources}
        keys.add(replace(RECIPE, tokenizer="tokenizer").key)
    assert len(keys) == 2 * 5
    names = [Source(source="python-stdlib"), Source(source="c-functions"), Source(source="owner/name")]
    from_there = [replace(RECIPE, source=source).key for source in names]
    monkeypatch.chdir(tmp_path)
    assert [replace(RECIPE, source=source).key for source in names] == from_there, "no matter where"


def test_the_manifest_counts_what_is_there(cache: Path) -> None:
    folder = prepare(RECIPE, cache)
    prepared = open_prepared(folder)
    manifest = prepared.manifest
    assert manifest == Manifest.read(folder / "manifest.json")
    assert json.loads((folder / "manifest.json").read_text())["train"]["blocks"] == len(prepared.train)
    assert manifest.train is not None
    assert manifest.train.documents + manifest.validation.documents <= 200
    assert manifest.train.tokens == len(prepared.train) * 64 + 1 + manifest.train.dropped_tokens
    assert manifest.vocab_size == len(prepared.tokenizer) == 300
    assert manifest.interpreter is None
    summary = manifest.summary()
    for part in ("c-functions", f"{manifest.validation.bytes:,} bytes", manifest.train.content_sha256[:12]):
        assert part in summary


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (["one document only"], {}, r"holds a single document or group, which cannot be split"),
        (
            [" ".join(map(str, range(n, n + 50))) for n in range(9)],
            {"sequence_length": 200},
            r"its validation split has",
        ),
        (
            ["short", "text"],
            {},
            r"its train split has \d+ tokens, fewer than one block of data\.sequence_length \(64\)",
        ),
        (["some", "text"], {"vocab_size": None}, r"data\.vocab_size \(null\) must be a number for data\.tokenizer tr"),
    ],
)
def test_what_cannot_be_prepared_is_refused(tmp_path: Path, texts: list[str], changes: dict, message: str) -> None:
    files = tmp_path / "files"
    files.mkdir()
    recipe = replace(with_files(files, texts), **changes)
    with pytest.raises(ValueError, match=message):
        prepare(recipe, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_source_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    recipe = replace(RECIPE, source=Source(source=str(tmp_path / "a.jsonl")))
    with pytest.raises(ValueError, match=r"data\.source \(.*a\.jsonl\) holds no text"):
        prepare(recipe, tmp_path / "cache")


def test_another_tokenizer_is_used_as_it_is_and_must_fit(tmp_path: Path) -> None:
    train_bpe(["some other text"], 270).save_pretrained(str(tmp_path / "tokenizer"))
    recipe = replace(RECIPE, tokenizer=str(tmp_path / "tokenizer"))
    prepared = open_prepared(prepare(recipe, tmp_path / "cache"))
    assert prepared.manifest.vocab_size == len(prepared.tokenizer) <= 270
    with pytest.raises(ValueError, match=r"more than model\.config\.vocab_size \(200\)"):
        prepare(replace(recipe, vocab_size=200), tmp_path / "cache")


def test_a_named_validation_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "hub"
    folder.mkdir()
    for split, numbers in (("train", range(40)), ("validation", range(30, 50))):
        rows = [json.dumps({"text": f"text number {number} " * 30}) for number in numbers]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    recipe = replace(RECIPE, source=Source(source=str(folder)), validation_split="validation")
    train, validation = ([d.text.split()[2] for d in side] for side in split_documents(recipe, tmp_path))
    assert train == [str(number) for number in range(30)]
    assert validation == [str(number) for number in range(30, 50)]


def large(folder: Path) -> Recipe:
    """A source of four pieces."""
    texts = [f"text number {number} " * (number % 9) for number in range(1, 150)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return replace(RECIPE, source=Source(source=str(folder / "a.jsonl")), shard_size=3000)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_number_of_workers_does_not_show(tmp_path: Path) -> None:
    recipe = large(tmp_path)
    folders = [preparation.prepare([recipe], tmp_path / str(number), number)[0] for number in (1, 2, 4)]
    assert len({folder.name for folder in folders}) == 1
    one, two, four = map(content, folders)
    assert one == two == four
    assert len([name for name in one if name.startswith("train/")]) == 4


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    recipe = large(tmp_path)
    whole = preparation.prepare([recipe], tmp_path / "whole")[0]
    told: list[str] = []
    (folder,) = preparation.prepare([recipe], tmp_path / "cache")
    partial = folder.rename(folder.with_name(f".{folder.name}.partial"))
    for lost in ("train/00001.arrow", "done/train-00002.json", "manifest.json", "shards.json"):
        (partial / lost).unlink()
    (partial / "train" / "00003.arrow").write_bytes(b"cut")
    (partial / "train" / ".00001.arrow-0123").write_bytes(b"half written by one that was killed")
    preparation.prepare([recipe], tmp_path / "cache", on_shard=lambda progress: told.append(progress.shards[-1].name))
    assert told == ["train/00001.arrow", "train/00002.arrow", "train/00003.arrow"]
    assert content(folder) == content(whole)


def test_a_finished_folder_is_mended_on_request_only(tmp_path: Path) -> None:
    recipe = large(tmp_path)
    (folder,) = preparation.prepare([recipe], tmp_path / "cache")
    before = content(folder)
    (folder / "train" / "00002.arrow").unlink()
    preparation.prepare([recipe], tmp_path / "cache")
    assert not (folder / "train" / "00002.arrow").exists()
    told: list[str] = []
    preparation.prepare(
        [recipe], tmp_path / "cache", mend=True, on_shard=lambda progress: told.append(progress.shards[-1].name)
    )
    assert told == ["train/00002.arrow"]
    assert content(folder) == before


def test_a_large_source_is_not_read_again_until_a_file_changes(tmp_path: Path) -> None:
    recipe = large(tmp_path)
    file = Path(str(recipe.source.source))
    (folder,) = preparation.prepare([recipe], tmp_path / "cache")
    status, raw = file.stat(), file.read_bytes()
    file.write_bytes(raw.replace(b"number 77 ", b"number 78 "))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert preparation.prepare([recipe], tmp_path / "cache") == [folder], "the same sizes and times"
    os.utime(file)
    assert preparation.prepare([recipe], tmp_path / "cache") != [folder]


def test_a_mixture_has_one_tokenizer_trained_on_all_of_it(tmp_path: Path) -> None:
    recipes = []
    for word in ("alpha", "beta"):
        (tmp_path / word).mkdir()
        recipes.append(with_files(tmp_path / word, [f"{word}{number} {word} " * 40 for number in range(20)]))
    folders = preparation.prepare(recipes, tmp_path / "cache")
    assert preparation.find_prepared(recipes, tmp_path / "cache") == folders
    opened = [open_prepared(folder) for folder in folders]
    assert fingerprint(opened[0].tokenizer) == fingerprint(opened[1].tokenizer)
    assert {"alpha", "beta"} <= set(opened[0].tokenizer.get_vocab())
