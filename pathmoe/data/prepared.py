"""Prepared data, opened: what `prepare` left in a folder."""

from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from pathmoe.data.blocks import Blocks
from pathmoe.data.manifest import Manifest
from pathmoe.data.shards import check_sizes, read_shards
from pathmoe.data.tokenizer import load_tokenizer


class Prepared(NamedTuple):
    """An opened folder of prepared data."""

    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase
    train: Blocks
    validation: Blocks


def open_prepared(folder: Path) -> Prepared:
    """Read the manifest and the tokenizer, and map the blocks, of a folder that `prepare` made.

    Raises ValueError naming a shard that is missing or has another size than it was written with.
    """
    shards = read_shards(folder)
    check_sizes(folder, shards)

    def blocks(split: str) -> Blocks:
        # A piece may have nothing, or less than a block, on one side.
        return Blocks.open(*(folder / s.name for s in shards if s.split == split and s.counts.blocks))

    manifest, tokenizer = Manifest.read(folder / "manifest.json"), load_tokenizer(str(folder / "tokenizer"))
    return Prepared(manifest, tokenizer, blocks("train"), blocks("validation"))
