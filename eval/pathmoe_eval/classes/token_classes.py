"""Taggers, which give each token of a document a class: by name, and made safe."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from pathmoe_eval.classes.python_classes import python_classes
from pathmoe_eval.classes.text_classes import text_classes

Tagger = Callable[[str, Sequence[tuple[int, int]]], Sequence[str]]
"""From a document and the span [start, end), in characters, of each of its tokens to a class for each."""

MAX_CLASSES = 1 << 16
"""Distinct classes that can be counted."""

SPECIAL = "special"
"""Class of what is put before and after a document (bos, eos)."""

_BUILT_IN: dict[str, Tagger] = {"python": python_classes, "text": text_classes}


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
