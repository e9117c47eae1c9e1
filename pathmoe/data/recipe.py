"""A recipe: all that decides prepared data but the content of the source."""

import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pathmoe.data.cache import hash_of
from pathmoe.data.sources import Source
from pathmoe.data.tokenizer import TRAIN_BPE


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fields as in `TokenDataModule`."""

    source: Source
    validation_split: str | None
    validation_fraction: float
    tokenizer: str
    vocab_size: int | None
    sequence_length: int
    shard_size: int = 2**30

    @property
    def validation_source(self) -> Source | None:
        """The named split that is validated on; None where a part of `source` is held out."""
        return None if self.validation_split is None else replace(self.source, split=self.validation_split)

    @property
    def key(self) -> str:
        """Hash of the recipe, of where its relative paths lead from here, and of the interpreter.

        The interpreter's library may be the source. The vocabulary's size decides only what a tokenizer is trained to.
        """
        tokenizer = Path(self.tokenizer)
        tokenizer_place = str(tokenizer.resolve()) if tokenizer.exists() else None
        of_recipe = asdict(self) | ({} if self.tokenizer == TRAIN_BPE else {"vocab_size": None})
        return hash_of(of_recipe, self.source.places, tokenizer_place, platform.python_version())
