import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pathmoe.data.recipe import Recipe
from pathmoe.data.sources import Source
from pathmoe.data.splits import Part, read_parts, split_documents

RECIPE = Recipe(
    source=Source(), validation_split=None, validation_fraction=0.3, tokenizer="x", vocab_size=300, sequence_length=64
)


def write(file: Path, texts: Sequence[str]) -> Recipe:
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return replace(RECIPE, source=Source(source=str(file)))


def texts_of(parts: Sequence[Part]) -> list[str]:
    return [document.text for document in read_parts(parts)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_pieces_do_not_show_in_the_sides(tmp_path: Path, num_workers: int) -> None:
    recipe = write(tmp_path / "a.jsonl", [f"text {number % 50} " * 5 for number in range(90)])
    (whole,) = split_documents([recipe], tmp_path)
    (cut,) = split_documents([replace(recipe, shard_size=1000)], tmp_path, num_workers)
    assert len(whole.train) == 1 and len(cut.train) == len(cut.validation) > 3
    assert cut.key == whole.key
    for side in ("train", "validation"):
        assert texts_of(getattr(cut, side)) == texts_of(getattr(whole, side)) != []


def test_a_source_of_one_piece_leaves_nothing_in_the_cache_and_others_are_read_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    recipe = write(tmp_path / "a.jsonl", [f"text {number} " * 5 for number in range(90)])
    split_documents([recipe], cache)
    assert not cache.exists()
    recipe = replace(recipe, shard_size=1000)
    split_documents([recipe], cache)
    files = {file: file.stat().st_mtime_ns for file in (cache / "surveys").iterdir()}
    (first, *_) = files
    first.unlink()  # as if the preparation had been killed before
    split_documents([recipe], cache)
    now = {file: file.stat().st_mtime_ns for file in (cache / "surveys").iterdir()}
    assert now.keys() == files.keys()
    assert [file for file in files if now[file] != files[file]] == [first]


def test_what_one_source_holds_out_no_other_is_trained_on(tmp_path: Path) -> None:
    shared = [f"in both {number} " * 4 for number in range(40)]
    first = write(tmp_path / "a.jsonl", [*shared, *(f"in a {number}" for number in range(20))])
    second = write(tmp_path / "b.jsonl", [*(f"in b {number}" for number in range(20)), *shared])
    # Texts are held out in the order of their hashes, which is the same everywhere.
    second = replace(second, validation_fraction=0.1)
    both = split_documents([first, second], tmp_path)
    held_out = {text for splits in both for text in texts_of(splits.validation)}
    assert held_out & set(shared)
    for splits, recipe in zip(both, (first, second), strict=True):
        (alone,) = split_documents([recipe], tmp_path)
        assert texts_of(splits.validation) == texts_of(alone.validation)
        assert texts_of(splits.train) == [text for text in texts_of(alone.train) if text not in held_out]
        assert (splits.key == alone.key) == (recipe is first)


def test_sources_without_a_text_in_common_are_split_as_alone(tmp_path: Path) -> None:
    recipes = [write(tmp_path / f"{name}.jsonl", [f"{name} {number}" for number in range(30)]) for name in "ab"]
    for together, recipe in zip(split_documents(recipes, tmp_path), recipes, strict=True):
        (alone,) = split_documents([recipe], tmp_path)
        assert together.key == alone.key
        for ours, theirs in zip(together.train, alone.train, strict=True):
            assert ours.piece == theirs.piece and np.array_equal(ours.mask, theirs.mask)
