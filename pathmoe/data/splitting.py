"""Which documents are held out for validation: whole groups, and no text on both sides."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pathmoe.data.document import Document

UInt64Array = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]


class Survey(NamedTuple):
    """What one pass over a source finds out about each of its n documents."""

    texts: UInt64Array
    """Hash of the text, uint64 [n]."""
    groups: UInt64Array
    """Hash of the group, uint64 [n]; the text's where the document is a group of its own."""
    num_bytes: npt.NDArray[np.int64]
    """UTF-8 bytes, int64 [n]."""
    content_sha256: str
    """Hash of all documents in order."""


def text_hash(text: str) -> bytes:
    """sha256 of the UTF-8 bytes of a text."""
    return hashlib.sha256(text.encode()).digest()


def survey(documents: Iterable[Document]) -> Survey:
    """Hash and measure every document, in 24 bytes of memory each."""
    content = hashlib.sha256()
    texts, groups, num_bytes = bytearray(), bytearray(), []
    for document in documents:
        digest = text_hash(document.text)
        content.update(digest)
        texts += digest[:8]
        groups += digest[:8] if document.group is None else text_hash(document.group)[:8]
        num_bytes.append(len(document.text.encode()))
    return Survey(
        np.frombuffer(texts, "<u8").astype(np.uint64),
        np.frombuffer(groups, "<u8").astype(np.uint64),
        np.array(num_bytes, dtype=np.int64),
        content.hexdigest(),
    )


def hold_out(groups: UInt64Array, num_bytes: npt.NDArray[np.int64], fraction: float) -> BoolArray:
    """Mask of the documents held out: about `fraction` of the bytes, in whole groups.

    Groups are taken in the order of their hash, leaving out those that would exceed the fraction; where none fits, the
    smallest is taken. It does not depend on any seed: runs that differ in their seed are measured on the same text.
    All is False where there are fewer than two groups.
    """
    unique, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of, weights=num_bytes).astype(np.int64)
    chosen = np.zeros(len(unique), dtype=bool)
    room = int(fraction * num_bytes.sum())
    for group, size in enumerate(sizes.tolist()):
        if size <= room:
            chosen[group] = True
            room -= size
    if not chosen.any() and len(unique) > 1:
        chosen[sizes.argmin()] = True
    return chosen[group_of]


def without_texts(texts: UInt64Array, held_out: UInt64Array) -> BoolArray:
    """Mask of the documents whose text is not among the held-out ones: copies of a validation text leave training."""
    return ~np.isin(texts, held_out)
