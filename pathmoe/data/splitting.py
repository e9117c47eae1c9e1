"""Which documents are held out for validation: whole groups, and no text on both sides."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pathmoe.data.document import Document

UInt64Array = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]


DOCUMENT = np.dtype([("digest", "u1", 32), ("group", "<u8"), ("num_bytes", "<i8")])
"""What is known of a document: sha256 of its text, hash of its group (the text's where it is a group of its own), and
its UTF-8 bytes."""


class Survey(NamedTuple):
    """What one pass over a source finds out about each of its n documents."""

    texts: UInt64Array
    """Hash of the text, uint64 [n]."""
    groups: UInt64Array
    """Hash of the group, uint64 [n]."""
    num_bytes: npt.NDArray[np.int64]
    """UTF-8 bytes, int64 [n]."""
    content_sha256: str
    """Hash of all documents in order."""
    documents_of_pieces: list[int]


def text_hash(text: str) -> bytes:
    """sha256 of the UTF-8 bytes of a text."""
    return hashlib.sha256(text.encode()).digest()


def measure(documents: Iterable[Document]) -> npt.NDArray[np.void]:
    """A record of `DOCUMENT` for each document, in order."""
    records = bytearray()
    for document in documents:
        raw = document.text.encode()
        digest = hashlib.sha256(raw).digest()
        records += digest
        records += digest[:8] if document.group is None else text_hash(document.group)[:8]
        records += len(raw).to_bytes(8, "little")
    return np.frombuffer(records, DOCUMENT)


def join_surveys(measured: Iterable[npt.NDArray[np.void]]) -> Survey:
    """What `measure` found in the pieces of a source, as one, in 24 bytes of memory for each document."""
    content = hashlib.sha256()
    texts, groups, num_bytes = [], [], []
    for piece in measured:
        digests = np.ascontiguousarray(piece["digest"])
        content.update(digests.tobytes())
        texts.append(digests[:, :8].copy().view("<u8")[:, 0].astype(np.uint64))
        groups.append(piece["group"].astype(np.uint64))
        num_bytes.append(piece["num_bytes"].astype(np.int64))
    return Survey(
        np.concatenate(texts),
        np.concatenate(groups),
        np.concatenate(num_bytes),
        content.hexdigest(),
        [len(piece) for piece in texts],
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
