"""Sources tokenised and packed once, shard by shard, in folders named after all that decides their content.

What a killed preparation has finished is not done again, and the number of workers does not show in what is written.
"""

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
from transformers import PreTrainedTokenizerBase

from pathmoe.data.cache import hash_of, read_json, write_folder, write_json
from pathmoe.data.manifest import Manifest, SplitManifest
from pathmoe.data.parallel import run_jobs
from pathmoe.data.pieces import cut_source
from pathmoe.data.recipe import Recipe
from pathmoe.data.shard_writer import ShardJob, write_shard
from pathmoe.data.shards import Shard, check_sizes, read_shards, write_shards
from pathmoe.data.sources import PYTHON_STDLIB
from pathmoe.data.splits import Splits, read_parts, split_documents
from pathmoe.data.tokenizer import TRAIN_BPE, check_vocab_size, fingerprint, load_tokenizer, train_bpe

_FORMAT = 3
"""Part of every name in the cache: raise it when the split, the BPE's training, packing, columns or manifest change."""


class Progress(NamedTuple):
    """What a call of `prepare` has done so far."""

    shards: Sequence[Shard]
    """Those that it has written, in the order in which they were finished."""
    seconds: float
    """What it took, reading the sources through included."""
    number: int
    """Shards of this source that are there."""
    of: int
    """All shards of this source."""


def prepare(
    recipes: Sequence[Recipe],
    cache_dir: Path,
    num_workers: int = 1,
    mend: bool = False,
    on_shard: Callable[[Progress], None] = lambda progress: None,
) -> list[Path]:
    """Folders of the prepared data of the sources of one run, made if the cache lacks them.

    A folder holds train/ and validation/ with a shard for each piece of the source, tokenizer/, manifest.json and
    shards.json. Sources are read through to hash them at each call, but for those of more than one piece whose files
    have the sizes and times that they were prepared with. Safe in several processes at once.

    Args:
        recipes: they differ in source and validation_split at most.
        cache_dir: where the folders are.
        num_workers: processes that read and tokenise; 1 is this one, with the threads of the tokenizer.
        mend: write again what is missing of a finished folder, or has been cut.
        on_shard: called with each shard that was written.

    Raises:
        ValueError: a source that cannot be read or split, a tokenizer that is too large, a split without a block.
    """
    start, written = time.perf_counter(), list[Shard]()

    def tell(shard: Shard, number: int, of: int) -> None:
        written.append(shard)
        on_shard(Progress(written, time.perf_counter() - start, number, of))

    if recipes[0].tokenizer != TRAIN_BPE:
        check_vocab_size(recipes[0].tokenizer, load_tokenizer(recipes[0].tokenizer), recipes[0].vocab_size)
    pointer, stamp = pointer_file(recipes, cache_dir), _stamp(recipes)
    known = read_json(pointer) if pointer.exists() else None
    if known and stamp and known["stamp"] == stamp:
        folders = [cache_dir / "prepared" / name for name in known["folders"]]
        if all(map(_is_whole if mend else Path.exists, folders)):
            return folders
    all_splits = split_documents(recipes, cache_dir, num_workers)
    name = _tokenizer_name(recipes[0], all_splits, cache_dir)
    tokenizer = load_tokenizer(name)
    folders = []
    for recipe, splits in zip(recipes, all_splits, strict=True):
        cuts = [[len(part.mask) for part in parts] for parts in (splits.train, splits.validation)]
        shape = cuts if len(splits.train) + len(splits.validation) > 2 else ()
        key = hash_of(_FORMAT, splits.key, fingerprint(tokenizer), recipe.sequence_length, *shape)
        folder = cache_dir / "prepared" / key
        if not (_is_whole(folder) if mend else folder.exists()):
            if mend:
                _take_apart(folder)
            _make(folder, recipe, splits, name, tokenizer, num_workers, tell)
        folders.append(folder)
    now = {"folders": [folder.name for folder in folders], "stamp": stamp}
    if now != known:
        write_json(pointer, now)
    return folders


def pointer_file(recipes: Sequence[Recipe], cache_dir: Path) -> Path:
    """File by which who prepares tells the other processes which folders are theirs: only it has read the sources."""
    keys = [recipe.key for recipe in recipes]
    return cache_dir / "recipes" / f"{keys[0] if len(keys) == 1 else hash_of(*keys)}.json"


def find_prepared(recipes: Sequence[Recipe], cache_dir: Path) -> list[Path]:
    """Folders that `prepare` made of these recipes."""
    names = read_json(pointer_file(recipes, cache_dir))["folders"]
    return [cache_dir / "prepared" / name for name in names]


def _stamp(recipes: Sequence[Recipe]) -> str | None:
    """Hash of the places, sizes and times of all files; None where reading them is cheap, or the only way to tell."""
    sources = [(recipe, source) for recipe in recipes for source in (recipe.source, recipe.validation_source) if source]
    pieces = [cut_source(source, recipe.shard_size) for recipe, source in sources]
    stamps = [[piece.stamp for piece in of_source] for of_source in pieces]
    if all(len(of_source) == 1 for of_source in pieces) or [""] in stamps:
        return None
    tokenizer = recipes[0].tokenizer
    return hash_of(_FORMAT, stamps, tokenizer if tokenizer == TRAIN_BPE else fingerprint(load_tokenizer(tokenizer)))


def _tokenizer_name(recipe: Recipe, all_splits: Sequence[Splits], cache_dir: Path) -> str:
    """Name or folder of the tokenizer; one to train is trained on all train documents, and kept in the cache."""
    if recipe.tokenizer != TRAIN_BPE:
        return recipe.tokenizer
    vocab_size = recipe.vocab_size
    if vocab_size is None:
        raise ValueError(f"data.vocab_size (null) must be a number for data.tokenizer {TRAIN_BPE}; set it")
    keys = [splits.key for splits in all_splits]
    folder = cache_dir / "tokenizers" / hash_of(_FORMAT, tokenizers.__version__, *keys, vocab_size)
    parts = [part for splits in all_splits for part in splits.train]

    def write(beside: Path) -> None:
        train_bpe((document.text for document in read_parts(parts)), vocab_size).save_pretrained(str(beside))

    write_folder(folder, write)
    return str(folder)


def _is_whole(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        check_sizes(folder, read_shards(folder))
    except ValueError:
        return False
    return True


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.partial")


def _take_apart(place: Path) -> None:
    """Make a finished folder one that is being made."""
    if place.exists():
        shutil.rmtree(_beside(place), ignore_errors=True)
        place.rename(_beside(place))


def _make(
    place: Path,
    recipe: Recipe,
    splits: Splits,
    tokenizer_name: str,
    tokenizer: PreTrainedTokenizerBase,
    num_workers: int,
    on_shard: Callable[[Shard, int, int], None],
) -> None:
    """Make a folder beside its place, going on with what is there, and rename it."""
    beside = _beside(place)
    sha256 = fingerprint(tokenizer)
    jobs = [
        ShardJob(part, tokenizer_name, sha256, recipe.sequence_length, beside, f"{split}/{number:05}.arrow")
        for split, parts in (("train", splits.train), ("validation", splits.validation))
        for number, part in enumerate(parts)
    ]
    try:
        shards = {shard.name: shard for job in jobs if (shard := _finished(job))}
        left = [job for job in jobs if job.name not in shards]
        for shard in run_jobs(write_shard, left, num_workers):
            shards[shard.name] = shard
            on_shard(shard, len(shards), len(jobs))
        in_order = [shards[job.name] for job in jobs]
        manifest = _manifest(recipe, in_order, tokenizer)
        tokenizer.save_pretrained(str(beside / "tokenizer"))
        manifest.write(beside / "manifest.json")
        write_shards(beside, in_order)
        beside.rename(place)
        for half_written in place.rglob(".*"):  # by one that was killed
            half_written.unlink(missing_ok=True)
    except OSError:
        # Another process may have been faster, with the same bytes.
        if not place.exists():
            raise
        shutil.rmtree(beside, ignore_errors=True)
    except _SplitTooSmallError:
        shutil.rmtree(beside, ignore_errors=True)
        raise


class _SplitTooSmallError(ValueError):
    """A split without a block, of which there is nothing to go on with."""


def _finished(job: ShardJob) -> Shard | None:
    """The shard that an earlier preparation has finished; None where it is not there, or cut."""
    if not job.record.exists():
        return None
    try:
        shard = Shard.from_json(read_json(job.record))
        check_sizes(job.folder, [shard])
    except ValueError:
        return None
    return shard


def _manifest(recipe: Recipe, shards: Sequence[Shard], tokenizer: PreTrainedTokenizerBase) -> Manifest:
    def counts(split: str) -> SplitManifest:
        total = SplitManifest.of_parts([shard.counts for shard in shards if shard.split == split])
        if total.blocks == 0:
            raise _SplitTooSmallError(
                f"data.source ({recipe.source.source}): its {split} split has {total.tokens} tokens, fewer than one "
                f"block of data.sequence_length ({recipe.sequence_length}) + 1; lower data.sequence_length, add text, "
                "or change data.validation_fraction"
            )
        return total

    return Manifest(
        source=recipe.source.source,
        subset=recipe.source.subset,
        split=recipe.source.named_split,
        interpreter=platform.python_version() if recipe.source.source == PYTHON_STDLIB else None,
        tokenizer=recipe.tokenizer,
        tokenizer_sha256=fingerprint(tokenizer),
        vocab_size=len(tokenizer),
        sequence_length=recipe.sequence_length,
        train=counts("train"),
        validation=counts("validation"),
    )
