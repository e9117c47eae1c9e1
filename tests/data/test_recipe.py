from dataclasses import replace
from pathlib import Path

from pathmoe.data.recipe import Recipe
from pathmoe.data.sources import Source

RECIPE = Recipe(
    source=Source(source="owner/name", subset="small"), validation_split=None, validation_fraction=0.1,
    tokenizer="train-bpe", vocab_size=300, sequence_length=64,
)  # fmt: skip


def test_every_field_is_in_the_key(tmp_path: Path) -> None:
    changes: list[dict] = [
        {"source": Source(source="owner/other")}, {"validation_split": "test"}, {"validation_fraction": 0.2},
        {"tokenizer": str(tmp_path)}, {"vocab_size": 301}, {"sequence_length": 65}, {"shard_size": 7},
    ]  # fmt: skip
    assert len({RECIPE.key, *(replace(RECIPE, **change).key for change in changes)}) == 1 + len(changes)
    assert replace(RECIPE, vocab_size=300).key == RECIPE.key


def test_the_split_that_is_validated_on() -> None:
    assert RECIPE.validation_source is None
    assert replace(RECIPE, validation_split="test").validation_source == replace(RECIPE.source, split="test")
