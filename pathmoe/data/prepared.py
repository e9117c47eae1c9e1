"""Prepared data: a source tokenised and packed once, kept in a folder named after all that decides its content."""

import hashlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import tokenizers
from transformers import PreTrainedTokenizerBase

from pathmoe.data.blocks import Blocks, block_features
from pathmoe.data.cache import hash_of, write_folder
from pathmoe.data.document import Document
from pathmoe.data.manifest import Manifest, SplitManifest
from pathmoe.data.packed_split import pack_split
from pathmoe.data.packing import token_dtype
from pathmoe.data.sources import PYTHON_STDLIB, Source, read_documents
from pathmoe.data.splitting import hold_out, survey, without_texts
from pathmoe.data.tokenizer import (
    TRAIN_BPE,
    check_vocab_size,
    fingerprint,
    load_tokenizer,
    train_bpe,
)

_FORMAT = 2
"""Part of every name in the cache: raise it when the split, the BPE's training, packing, columns or manifest change."""

Documents = Callable[[], Iterator[Document]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides prepared data but the content of the source; fields as in `TokenDataModule`."""

    source: Source
    validation_split: str | None
    validation_fraction: float
    tokenizer: str
    vocab_size: int | None
    sequence_length: int

    @property
    def key(self) -> str:
        """Hash of the recipe, of where its relative paths lead from here, and of the interpreter.

        The interpreter's library may be the source.
        """
        tokenizer = Path(self.tokenizer)
        tokenizer_place = str(tokenizer.resolve()) if tokenizer.exists() else None
        return hash_of(asdict(self), self.source.places, tokenizer_place, platform.python_version())


class Splits(NamedTuple):
    """The two sides of a source; each can be read as often as needed."""

    train: Documents
    validation: Documents
    key: str
    """Hash of the documents and of the side that each is on."""


def prepare(recipe: Recipe, cache_dir: Path) -> Path:
    """Folder of the prepared data of a recipe, made if the cache lacks it; safe in several processes at once.

    The folder holds train.arrow, validation.arrow, tokenizer/ and manifest.json. The source is read through to hash it
    at each call; what is in the cache is not tokenised again. Raises ValueError for a source that cannot be read or
    split, a tokenizer that is too large, a split smaller than one block.
    """
    splits = split_documents(recipe)
    tokenizer = _tokenizer(recipe, splits, cache_dir)
    check_vocab_size(recipe.tokenizer, tokenizer, recipe.vocab_size)
    key = hash_of(_FORMAT, splits.key, fingerprint(tokenizer), recipe.sequence_length)

    def write(folder: Path) -> None:
        train = _write_split(folder / "train.arrow", splits.train, tokenizer, recipe, "train")
        validation = _write_split(folder / "validation.arrow", splits.validation, tokenizer, recipe, "validation")
        tokenizer.save_pretrained(str(folder / "tokenizer"))
        manifest = Manifest(
            source=recipe.source.source,
            subset=recipe.source.subset,
            split=recipe.source.named_split,
            interpreter=platform.python_version() if recipe.source.source == PYTHON_STDLIB else None,
            tokenizer=recipe.tokenizer,
            tokenizer_sha256=fingerprint(tokenizer),
            vocab_size=len(tokenizer),
            sequence_length=recipe.sequence_length,
            train=train,
            validation=validation,
        )
        manifest.write(folder / "manifest.json")

    folder = cache_dir / "prepared" / key
    write_folder(folder, write)
    return folder


def split_documents(recipe: Recipe) -> Splits:
    """Train and validation documents of a recipe; no text is on both sides. Raises ValueError where there is none."""
    source = recipe.source
    found = survey(read_documents(source))
    if not len(found.texts):
        raise ValueError(f"data.source ({source.source}) holds no text; give another source")
    if recipe.validation_split is not None:
        other = replace(source, split=recipe.validation_split)
        held_out = survey(read_documents(other))
        keep = without_texts(found.texts, held_out.texts)
        key = hash_of(found.content_sha256, held_out.content_sha256)
        return Splits(lambda: compress(read_documents(source), keep), lambda: read_documents(other), key)
    chosen = hold_out(found.groups, found.num_bytes, recipe.validation_fraction)
    if not chosen.any():
        raise ValueError(
            f"data.source ({source.source}) holds a single document or group, which cannot be split into train and "
            "validation; add documents, or set data.validation_split where the source has named splits"
        )
    keep = ~chosen & without_texts(found.texts, found.texts[chosen])
    return Splits(
        lambda: compress(read_documents(source), keep),
        lambda: compress(read_documents(source), chosen),
        # The texts alone do not tell: which side each is on depends on their groups, too.
        hash_of(found.content_sha256, hashlib.sha256(chosen.tobytes()).hexdigest()),
    )


def _tokenizer(recipe: Recipe, splits: Splits, cache_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe; one to train is trained on the train documents only, and kept in the cache."""
    if recipe.tokenizer != TRAIN_BPE:
        return load_tokenizer(recipe.tokenizer)
    vocab_size = recipe.vocab_size
    if vocab_size is None:
        raise ValueError(f"data.vocab_size (null) must be a number for data.tokenizer {TRAIN_BPE}; set it")
    folder = cache_dir / "tokenizers" / hash_of(_FORMAT, tokenizers.__version__, splits.key, vocab_size)

    def write(beside: Path) -> None:
        train_bpe((document.text for document in splits.train()), vocab_size).save_pretrained(str(beside))

    write_folder(folder, write)
    return load_tokenizer(str(folder))


def _write_split(
    file: Path, documents: Documents, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, split: str
) -> SplitManifest:
    """Tokenise and pack the documents of a split into an Arrow stream file; its counts."""
    schema = block_features(recipe.sequence_length, token_dtype(len(tokenizer))).arrow_schema
    texts = (document.text for document in documents())
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        manifest = pack_split(texts, tokenizer, recipe.sequence_length, writer.write_table)
    if manifest.blocks == 0:
        raise ValueError(
            f"data.source ({recipe.source.source}): its {split} split has {manifest.tokens} tokens, fewer than one "
            f"block of data.sequence_length ({recipe.sequence_length}) + 1; lower data.sequence_length, add text, or "
            "change data.validation_fraction"
        )
    return manifest


class Prepared(NamedTuple):
    """An opened folder of prepared data."""

    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase
    train: Blocks
    validation: Blocks


def open_prepared(folder: Path) -> Prepared:
    """Read the manifest and the tokenizer, and map the blocks, of a folder that `prepare` made."""
    return Prepared(
        Manifest.read(folder / "manifest.json"),
        load_tokenizer(str(folder / "tokenizer")),
        Blocks.open(folder / "train.arrow"),
        Blocks.open(folder / "validation.arrow"),
    )
