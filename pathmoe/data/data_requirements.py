"""What the arguments of the data must be, beyond their types."""

from collections.abc import Sequence
from typing import Any

from pathmoe.data.mixture import WeightedSource
from pathmoe.data.recipe import Recipe
from pathmoe.data.sources import Source
from pathmoe.data.tokenizer import TRAIN_BPE

_LOWEST = {
    "vocab_size": 1,
    "sequence_length": 1,
    "micro_batch_size": 1,
    "global_batch_size": 1,
    "validation_documents": 1,
    "num_workers": 0,
    "shard_size": 1,
}


def check_numbers(**arguments: Any) -> None:
    """Raise ValueError where one of these arguments, by its key, is less than it can be."""
    for key, value in arguments.items():
        if value is not None and value < _LOWEST[key]:
            raise ValueError(f"data.{key} ({value}) must be at least {_LOWEST[key]}; raise it")


def check_streaming(tokenizer: str, num_workers: int, mixture: Sequence[WeightedSource]) -> None:
    """Raise ValueError where an argument needs data that is prepared."""
    if tokenizer == TRAIN_BPE:
        raise ValueError(
            f"data.tokenizer ({tokenizer}) must be a folder or a name on the hub with data.streaming (true), which "
            "has no documents to train it on; set data.tokenizer, or data.streaming to false"
        )
    if num_workers > 1:
        raise ValueError(
            f"data.num_workers ({num_workers}) must be 0 or 1 with data.streaming (true), whose documents are read "
            "in order; lower it"
        )
    if mixture:
        raise ValueError(
            f"data.mixture ({len(mixture)} sources) must not be set with data.streaming (true), which reads one "
            "source; set data.streaming to false, or data.source instead"
        )


def check_recipe(recipe: Recipe) -> None:
    """Raise ValueError where nothing or all would be held out, or by a split that the source does not have."""
    if not 0 < recipe.validation_fraction < 1:
        raise ValueError(f"data.validation_fraction ({recipe.validation_fraction}) must lie between 0 and 1; change it")
    if recipe.validation_split is not None and not recipe.source.has_splits:
        raise ValueError(
            f"data.validation_split ({recipe.validation_split}) must not be set where data.source "
            f"({recipe.source.source}) has no named splits; remove it, data.validation_fraction holds documents out"
        )


def check_one_source(source: Source, validation_split: str | None) -> None:
    """Raise ValueError where a source is described beside a mixture."""
    values = {**vars(source), "validation_split": validation_split}
    for key, default in {**vars(Source()), "validation_split": None}.items():
        if values[key] != default:
            raise ValueError(
                f"data.{key} ({values[key]}) must not be set beside data.mixture, whose sources have their own; "
                "remove one of the two"
            )
