"""The train and validation documents of sources: which piece they are in, and which of its documents they are."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pathmoe.data.cache import hash_of
from pathmoe.data.document import Document
from pathmoe.data.parallel import run_jobs
from pathmoe.data.pieces import Piece, cut_source, read_piece
from pathmoe.data.recipe import Recipe
from pathmoe.data.shards import written_beside
from pathmoe.data.splitting import BoolArray, Survey, hold_out, join_surveys, measure, without_texts

_SURVEY_FORMAT = 1
"""Part of the name of every survey in the cache: raise it when `measure` changes."""


class Part(NamedTuple):
    """The documents of a piece that are on one side of a split."""

    piece: Piece
    mask: BoolArray
    """[documents of the piece]"""


class Splits(NamedTuple):
    """The two sides of a source."""

    train: list[Part]
    validation: list[Part]
    key: str
    """Hash of the documents and of the side that each is on."""


class _Sides(NamedTuple):
    """A source before what other sources hold out has left its train side."""

    pieces: list[Piece]
    found: Survey
    chosen: BoolArray | None
    """Documents held out; None where another split is."""
    validation_pieces: list[Piece]
    held_out: Survey
    """Of the pieces that the held-out documents are in."""


def read_parts(parts: Iterable[Part]) -> Iterator[Document]:
    """The documents of parts, in order."""
    return (document for part in parts for document in compress(read_piece(part.piece), part.mask))


def split_documents(recipes: Sequence[Recipe], cache_dir: Path, num_workers: int = 1) -> list[Splits]:
    """Train and validation documents of each recipe; no text that one validates on is trained on by any.

    The sources are read through. What was found in a source of several pieces is kept in the cache, by the places,
    sizes and times of its files, so that a preparation that was killed need not read them again. Raises ValueError
    where a source has no documents, or too few to split.
    """
    sides = [_sides(recipe, cache_dir, num_workers) for recipe in recipes]
    held_out = np.concatenate([_held_out_texts(side) for side in sides])
    return [_without(side, held_out) for side in sides]


def _sides(recipe: Recipe, cache_dir: Path, num_workers: int) -> _Sides:
    source = recipe.source
    pieces = cut_source(source, recipe.shard_size)
    found = _survey(pieces, cache_dir, num_workers)
    if not len(found.texts):
        raise ValueError(f"data.source ({source.source}) holds no text; give another source")
    if recipe.validation_source is not None:
        others = cut_source(recipe.validation_source, recipe.shard_size)
        return _Sides(pieces, found, None, others, _survey(others, cache_dir, num_workers))
    chosen = hold_out(found.groups, found.num_bytes, recipe.validation_fraction)
    if not chosen.any():
        raise ValueError(
            f"data.source ({source.source}) holds a single document or group, which cannot be split into train and "
            "validation; add documents, or set data.validation_split where the source has named splits"
        )
    return _Sides(pieces, found, chosen, pieces, found)


def _held_out_texts(sides: _Sides) -> np.ndarray:
    return sides.held_out.texts if sides.chosen is None else sides.found.texts[sides.chosen]


def _without(sides: _Sides, held_out: np.ndarray) -> Splits:
    """Splits of one source, where these texts, its own held-out ones among them, are not trained on."""
    found, chosen = sides.found, sides.chosen
    train, own = without_texts(found.texts, held_out), without_texts(found.texts, _held_out_texts(sides))
    if chosen is None:
        key = hash_of(found.content_sha256, sides.held_out.content_sha256)
        chosen = np.ones(len(sides.held_out.texts), dtype=bool)
    else:
        train, own = train & ~chosen, own & ~chosen
        # The texts alone do not tell: which side each is on depends on their groups, too.
        key = hash_of(found.content_sha256, hashlib.sha256(chosen.tobytes()).hexdigest())
    if not np.array_equal(train, own):
        key = hash_of(key, hashlib.sha256(train.tobytes()).hexdigest())
    return Splits(_parts(sides.pieces, train, found), _parts(sides.validation_pieces, chosen, sides.held_out), key)


def _parts(pieces: Sequence[Piece], mask: BoolArray, found: Survey) -> list[Part]:
    masks = np.split(mask, np.cumsum(found.documents_of_pieces)[:-1])
    return [Part(piece, of_piece) for piece, of_piece in zip(pieces, masks, strict=True)]


def _survey(pieces: Sequence[Piece], cache_dir: Path, num_workers: int) -> Survey:
    if len(pieces) == 1:
        return join_surveys([measure(read_piece(pieces[0]))])
    files = [cache_dir / "surveys" / f"{_SURVEY_FORMAT}-{piece.stamp}.npy" for piece in pieces]
    jobs = [(piece, file) for piece, file in zip(pieces, files, strict=True) if not file.exists()]
    for _ in run_jobs(_write_survey, jobs, num_workers):
        pass
    return join_surveys(np.load(file) for file in files)


def _write_survey(job: tuple[Piece, Path]) -> None:
    piece, file = job
    with written_beside(file) as beside, beside.open("wb") as stream:
        np.save(stream, measure(read_piece(piece)))
