"""A class for each token that a model is given: taggers by name, tagged documents, their classes beside routing."""

# Shapes: N tokens, L MoE layers, K experts per token.

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pathmoe_eval.classes.python_classes import python_classes
from pathmoe_eval.classes.text_classes import text_classes
from pathmoe_eval.classes.token_spans import encode_with_spans

Tagger = Callable[[str, Sequence[tuple[int, int]]], Sequence[str]]
"""From a document and the span [start, end), in characters, of each of its tokens to a class for each."""

MAX_CLASSES = 1 << 16
"""Distinct classes that can be counted."""

SPECIAL = "special"
"""Class of what is put before and after a document (bos, eos)."""

_BUILT_IN: dict[str, Tagger] = {"python": python_classes, "text": text_classes}


class TaggedDocument(NamedTuple):
    """The tokens of a document as a model is given them."""

    token_ids_N: NDArray[np.int64]
    class_ids_N: NDArray[np.int32]
    """Class of each token, as `ClassNames` numbers them."""


class TaggedChunk(NamedTuple):
    """A chunk of recorded routing with what its tokens are."""

    expert_ids_NLK: NDArray[np.integer]
    class_ids_N: NDArray[np.int32]
    token_ids_N: NDArray[np.int64]


class ClassNames:
    """Names of classes, numbered from 0 in the order in which they are first seen."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class id."""
        return tuple(self._ids)

    def ids(self, classes: Iterable[str]) -> list[int]:
        """Ids of classes by name.

        Raises:
            ValueError: more than `MAX_CLASSES` classes.
        """
        ids = [self._ids.setdefault(name, len(self._ids)) for name in classes]
        if len(self._ids) > MAX_CLASSES:
            raise ValueError(
                f"tagger ({len(self._ids)} classes) must give at most {MAX_CLASSES}; give tokens classes, not names"
            )
        return ids


def tagged(tagger: Tagger, text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The classes of a document's tokens.

    Raises:
        ValueError: the tagger fails, or does not return one string a token.
    """
    try:
        classes = list(tagger(text, spans))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        beginning = " ".join(text[:40].split())
        raise ValueError(
            f"tagger ({reason}) must not fail, but does on the document that begins with {beginning!r}; correct it"
        ) from error
    wrong = next((value for value in classes if not isinstance(value, str)), None)
    if wrong is not None or len(classes) != len(spans):
        found = f"{len(classes)} classes" if wrong is None else f"a class of type {type(wrong).__name__}"
        raise ValueError(
            f"tagger ({found} for {len(spans)} tokens) must return one string for each span; correct the function"
        )
    return classes


def load_tagger(name: str) -> Tagger:
    """The tagger `python`, `text`, or `module:function`; modules in the current folder are found, too.

    Raises:
        ValueError: there is no such function.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"tagger ({name}) must be one of {', '.join(_BUILT_IN)}, or module:function; change it")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"tagger ({name}) must name a module that can be imported ({reason}); correct it, or run from its folder"
        ) from error
    tagger = getattr(module, function_name, None)
    if not callable(tagger):
        raise ValueError(
            f"tagger ({name}) must name a function, which {module.__name__} has not; correct the name after the colon"
        )
    return tagger


def tag_documents(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    tagger: Tagger,
    names: ClassNames,
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
) -> Iterator[TaggedDocument]:
    """Tokens and classes of documents, one after the other.

    Args:
        texts: the documents.
        tokenizer: that of the model.
        tagger: see `load_tagger`.
        names: numbers the classes; the same for all documents whose classes are compared.
        bos_id: token before each document; None: there is none.
        eos_id: token after each document; None: there is none.

    Raises:
        ValueError: what the tagger returns is not one string a token, or there are too many classes.
    """
    before, after = ([] if special_id is None else [special_id] for special_id in (bos_id, eos_id))
    for text in texts:
        ids, spans_N2 = encode_with_spans(tokenizer, text)
        spans = [(start, end) for start, end in spans_N2.tolist()]
        classes = tagged(tagger, text, spans)
        class_ids = names.ids([SPECIAL] * len(before) + classes + [SPECIAL] * len(after))
        yield TaggedDocument(np.array(before + ids + after, dtype=np.int64), np.array(class_ids, dtype=np.int32))


def tag_chunks(
    documents: Iterable[TaggedDocument],
    chunks: Iterable[tuple[NDArray[np.integer], NDArray[np.integer] | None]],
) -> Iterator[TaggedChunk]:
    """Recorded routing beside the classes of its tokens.

    The tokens of the documents, put one after the other, are those of the chunks, which may end earlier.

    Args:
        documents: in the order in which they were recorded.
        chunks: pairs of expert_ids_NLK, integers [tokens, layers, experts per token], and the token ids that were
            recorded with them, integers [tokens], or None.

    Raises:
        ValueError: a recorded token is not the token of the documents at its place, or the documents end first.
    """
    waiting = _Waiting(iter(documents))
    num_tokens = 0
    for expert_ids_NLK, recorded_ids_N in chunks:
        token_ids_N, class_ids_N = waiting.take(len(expert_ids_NLK))
        if recorded_ids_N is not None:
            differs_N = np.asarray(recorded_ids_N) != token_ids_N
            if differs_N.any():
                at = int(differs_N.argmax())
                raise ValueError(
                    f"token {num_tokens + at} of the recording ({recorded_ids_N[at]}) must be that of the documents "
                    f"({token_ids_N[at]}); give the data and the tokenizer that were recorded"
                )
        num_tokens += len(expert_ids_NLK)
        yield TaggedChunk(expert_ids_NLK, class_ids_N, token_ids_N)


class _Waiting:
    """Documents as one stream of tokens that is read in pieces."""

    def __init__(self, documents: Iterator[TaggedDocument]) -> None:
        self._documents = documents
        self._pieces: list[TaggedDocument] = []
        self._num_waiting = self._num_taken = 0

    def take(self, num_tokens: int) -> TaggedDocument:
        while self._num_waiting < num_tokens:
            document = next(self._documents, None)
            if document is None:
                raise ValueError(
                    f"documents ({self._num_taken + self._num_waiting} tokens) must hold all that was recorded "
                    f"(at least {self._num_taken + num_tokens}); give the data that was recorded"
                )
            self._pieces.append(document)
            self._num_waiting += len(document.token_ids_N)
        if len(self._pieces) != 1:
            empty = TaggedDocument(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32))
            columns = zip(empty, *self._pieces, strict=True)
            self._pieces = [TaggedDocument(*(np.concatenate(column) for column in columns))]
        token_ids_N, class_ids_N = self._pieces.pop()
        self._pieces.append(TaggedDocument(token_ids_N[num_tokens:], class_ids_N[num_tokens:]))
        self._num_waiting -= num_tokens
        self._num_taken += num_tokens
        return TaggedDocument(token_ids_N[:num_tokens], class_ids_N[:num_tokens])
