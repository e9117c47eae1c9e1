import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser

from pathmoe.data import TokenDataModule, WeightedSource
from pathmoe.data.interleaving import interleave

WORDS = {"alpha": 4.0, "beta": 1.0, "gamma": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of each word, of several sizes."""
    folder = tmp_path_factory.mktemp("sources")
    for size, word in enumerate(WORDS, start=1):
        texts = [f"{word} {number} " * (number % 7 + 1) for number in range(60 * size)]
        (folder / f"{word}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


def make(folder: Path, weights: dict[str, float] | None = None, **changes: Any) -> TokenDataModule:
    mixture = [WeightedSource(source=str(folder / f"{w}.jsonl"), weight=x) for w, x in (weights or WORDS).items()]
    arguments = {"mixture": mixture, "vocab_size": 400, "sequence_length": 16, "micro_batch_size": 4}
    data = TokenDataModule(**(arguments | {"cache_dir": str(folder / "cache")} | changes))
    data.prepare_data()
    data.setup("fit")
    return data


def words_of(data: TokenDataModule, batch: dict[str, Any]) -> list[str]:
    """The word of each block's source, which no other source has."""
    found = [set(WORDS) & set(data.tokenizer.decode(row).split()) for row in batch["input_ids"].tolist()]
    assert all(len(words) == 1 for words in found)
    return [words.pop() for words in found]


def test_training_reads_each_source_in_its_share(folder: Path) -> None:
    data = make(folder)
    words = [word for batch in islice(data.train_batches(), 200) for word in words_of(data, batch)]
    names = list(WORDS)
    for start in (0, 13, 400):
        window = Counter(words[start : start + 80])
        assert all(abs(window[word] - 10 * weight) <= 3 for word, weight in WORDS.items())
    assert [names[source] for source in interleave(np.arange(800), list(WORDS.values()))[0]] == words
    read = [Counter(words[: 3 * 4])[word] for word in names]
    assert data.blocks_read(3) == read


def test_each_source_is_read_once_before_any_of_it_is_read_again(folder: Path) -> None:
    data = make(folder)
    seen = [index for batch in islice(data.train_batches(), 400) for index in batch["block_ids"]]
    manifest = data.manifest
    assert manifest.mixture is not None
    first = 0
    for source in manifest.mixture:
        blocks = source.train.blocks
        mine = [index for index in seen if first <= index < first + blocks]
        assert len(mine) > blocks and sorted(mine[:blocks]) == list(range(first, first + blocks))
        first += blocks
    assert first == len(data.train_blocks)


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2), (4, 1)])
def test_the_global_batch_does_not_depend_on_the_cut(folder: Path, world_size: int, accumulate: int) -> None:
    whole = list(islice(make(folder, micro_batch_size=8).train_batches(), 6))
    data = make(folder, micro_batch_size=8 // world_size // accumulate)
    for step, expected in enumerate(whole):
        ids: list[int] = []
        for rank in range(world_size):
            batches = data.train_batches(step, rank, world_size, accumulate)
            ids += [index for batch in islice(batches, accumulate) for index in batch["block_ids"]]
        assert sorted(ids) == sorted(expected["block_ids"])


def test_validation_is_that_of_each_source(folder: Path) -> None:
    data = make(folder)
    words = [(batch["source"], word) for batch in data.val_dataloader() for word in words_of(data, batch)]
    assert {(source, word) for source, word in words} == set(enumerate(WORDS))
    assert len(words) == len(data.validation_blocks) == data.manifest.validation.blocks
    assert next(data.held_out_documents()).text.startswith("alpha")


def test_a_mixture_of_one_source_is_that_source(folder: Path) -> None:
    mixed = make(folder, {"beta": 0.3})
    alone = make(folder, mixture=None, source=str(folder / "beta.jsonl"))
    for ours, theirs in zip(islice(mixed.train_batches(), 30), alone.train_batches(), strict=False):
        assert ours["block_ids"] == theirs["block_ids"] and ours["input_ids"].equal(theirs["input_ids"])


def test_other_weights_are_another_run(folder: Path) -> None:
    before, now = make(folder).state_dict(), make(folder, WORDS | {"beta": 2.0}).state_dict()
    changed = {key for key in now if before[key] != now[key]}
    assert changed == {"data.mixture (shares)"}
    alone = make(folder, mixture=None, source=str(folder / "beta.jsonl"))
    assert "data.mixture (shares)" not in alone.state_dict()


def test_a_configuration_can_say_it(folder: Path) -> None:
    text = f"""
    data:
      cache_dir: {folder}/cache
      vocab_size: 400
      mixture:
        - source: {folder}/alpha.jsonl
          weight: 4
        - source: c-functions
          num_documents: 40
          weight: 1.5
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TokenDataModule, "data")
    settings = parser.parse_object(yaml.safe_load(text))
    data = parser.instantiate_classes(settings).data
    assert [recipe.source.source for recipe in data.recipes] == [f"{folder}/alpha.jsonl", "c-functions"]
    # A saved configuration holds plain values.
    again = TokenDataModule(**yaml.safe_load(parser.dump(settings))["data"])
    assert again.recipes == data.recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streaming": True, "tokenizer": "x"}, r"data\.mixture \(3 sources\) must not be set with data\.streaming"),
        ({"source": "a.txt"}, r"data\.source \(a\.txt\) must not be set beside data\.mixture"),
        ({"validation_split": "test"}, r"data\.validation_split \(test\) must not be set beside data\.mixture"),
        ({"mixture": []}, r"data\.mixture \(\[\]\) must hold a source at least"),
        ({"mixture": [{"source": "no/such.txt", "weight": 1.0}]}, r"data\.source \(no/such\.txt\) names no file"),
        (
            {"mixture": [{"source": "c-functions", "weight": 1.0, "validation_split": "x"}]},
            r"data\.validation_split \(x\) must not be set where data\.source \(c-functions\) has no named splits",
        ),
    ],
)
def test_what_is_no_mixture_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(folder, **changes)
