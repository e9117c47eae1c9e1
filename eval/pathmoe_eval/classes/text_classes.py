"""Classes of the tokens of plain text: words and their parts, function words, numerals, punctuation, whitespace."""

# Shapes: N tokens, M characters of a document.

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.classes.token_spans import majority_class

TEXT_CLASSES = (
    "function word",
    "capitalised word",
    "word beginning",
    "numeral",
    "punctuation",
    "word continuation",
    "whitespace",
    "unknown",
)
"""The classes, those that win a tie first: a blank before a word or a comma does not decide."""

_FUNCTION_WORDS = """
a an the this that these those some any no every each all both either neither
i me my mine you your yours he him his she her hers it its we us our ours they them their theirs
who whom whose which what myself yourself himself herself itself ourselves themselves
and or but nor so yet if then than because although though while when where as until unless since whether
of in on at by for with from to into onto upon over under about after before between through during against
without within along across behind beyond near off out up down
is am are was were be been being do does did have has had having
will would shall should can could may might must not
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English function words: a list of ours, of determiners, pronouns, conjunctions, prepositions and auxiliaries."""

_ID = {name: class_id for class_id, name in enumerate(TEXT_CLASSES)}
_PART = re.compile(r"(?P<word>a+(?:'a+)*)|(?P<numeral>d+(?:[.,]d+)*)|(?P<whitespace>s+)")
_KEPT = {"'": "'", "\u2019": "'", ".": ".", ",": ","}


def text_classes(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """A class of `TEXT_CLASSES` for each token: that of most of its characters, the first in the list of a tie.

    A word is a run of letters with their marks, apostrophes between letters included. A token that holds the first
    letter of a word is a function word if the word, in lower case, is in `FUNCTION_WORDS`; else capitalised if that
    letter is; else a word beginning. One that holds only later letters is a word continuation. Numerals are digits and
    other number characters, with points and commas between them. What is left and not blank is punctuation. Meant for
    scripts that put blanks between words. A token without characters is "unknown". The rules are our choice.

    Args:
        text: a document.
        spans: [start, end) in characters for each token.
    """
    spans_N2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
    classes_M, begins_M = _characters(text)
    classes_N = majority_class(classes_M, spans_N2, len(TEXT_CLASSES))
    begun_M = np.concatenate([[0], np.cumsum(begins_M)])
    begins_N = begun_M[spans_N2[:, 1]] > begun_M[spans_N2[:, 0]]
    is_word_N = (classes_N >= 0) & (classes_N <= _ID["word beginning"])
    classes_N[is_word_N & ~begins_N] = _ID["word continuation"]
    classes_N[classes_N < 0] = _ID["unknown"]
    return [TEXT_CLASSES[class_id] for class_id in classes_N.tolist()]


def _characters(text: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Class of each character, that of its whole word for a letter, and where words begin."""
    classes_M = np.full(len(text), _ID["punctuation"], dtype=np.uint8)
    begins_M = np.zeros(len(text), dtype=np.bool_)
    kinds = text.translate({ord(character): _kind(character) for character in set(text)})
    for part in _PART.finditer(kinds):
        name = part.lastgroup or ""
        if name == "word":
            begins_M[part.start()] = True
            name = _class_of_word(text[part.start() : part.end()])
        classes_M[part.start() : part.end()] = _ID[name]
    return classes_M, begins_M


def _kind(character: str) -> str:
    """One letter for what may stand where in a word or numeral."""
    if character in _KEPT:
        return _KEPT[character]
    if character.isspace():
        return "s"
    return {"L": "a", "M": "a", "N": "d"}.get(unicodedata.category(character)[0], "p")


def _class_of_word(word: str) -> str:
    if word.lower() in FUNCTION_WORDS:
        return "function word"
    return "capitalised word" if word[0].isupper() or word[0].istitle() else "word beginning"
