"""Classes of the tokens of Python code: the lexical classes of Python's own tokenizer and keyword lists."""

# Shapes: N tokens of the model, M characters of a document.

from __future__ import annotations

import builtins
import io
import keyword
import tokenize
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.classes.token_spans import majority_class

PYTHON_CLASSES = (
    "keyword",
    "soft keyword",
    "builtin",
    "name",
    "number",
    "string",
    "comment",
    "operator",
    "error",
    "newline",
    "line break",
    "indentation",
    "whitespace",
    "unknown",
)
"""The classes, those that win a tie first: a blank before a word or an operator does not decide."""

_ID = {name: class_id for class_id, name in enumerate(PYTHON_CLASSES)}
_BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("_"))
_OF_TYPE = {
    "NUMBER": "number",
    "STRING": "string",
    "COMMENT": "comment",
    "OP": "operator",
    "NEWLINE": "newline",
    "NL": "line break",
    "ERRORTOKEN": "error",
    "TYPE_COMMENT": "comment",
} | {f"{letter}STRING_{part}": "string" for letter in "FT" for part in ("START", "MIDDLE", "END")}
_TYPE_NAME = tokenize.tok_name
_PLACELESS = ("INDENT", "DEDENT", "ENDMARKER", "ENCODING")


def python_classes(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """A class of `PYTHON_CLASSES` for each token: that of most of its characters, the first in the list of a tie.

    A character has the class of the lexical token that it lies in, as `tokenize` of the running interpreter finds it:
    a NAME is a keyword or soft keyword by the lists of `keyword`, else a builtin if `builtins` has it (but for those
    with a leading underscore), else a name; by spelling alone, but after a dot it is no soft keyword and no builtin.
    "newline" ends a statement, "line break" (NL) only a line. Blanks at the start of a line are indentation, other
    blanks and the backslash that joins lines whitespace.
    From the place on where the text does not tokenize, all is "unknown", and so is a token without characters.

    Args:
        text: a document.
        spans: [start, end) in characters for each token.
    """
    spans_N2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
    classes_N = majority_class(_class_of_character_M(text), spans_N2, len(PYTHON_CLASSES))
    classes_N[classes_N < 0] = _ID["unknown"]
    return [PYTHON_CLASSES[class_id] for class_id in classes_N.tolist()]


def _class_of_character_M(text: str) -> NDArray[np.uint8]:
    classes_M = np.full(len(text), _ID["unknown"], dtype=np.uint8)
    end = 0
    for name, start, stop in _lexical_tokens(text):
        _classify_blanks(text, end, start, classes_M)
        classes_M[start:stop] = _ID[name]
        end = max(end, stop)
    return classes_M


def _classify_blanks(text: str, start: int, stop: int, classes_M: NDArray[np.uint8]) -> None:
    """What lies between two lexical tokens."""
    at_line_start = start == 0 or text[start - 1] in "\r\n"
    for place in range(start, stop):
        is_line_end = text[place] in "\r\n"
        classes_M[place] = _ID["indentation" if at_line_start and not is_line_end else "whitespace"]
        at_line_start = is_line_end or (at_line_start and text[place].isspace())


def _lexical_tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Class, start and end of each lexical token, up to the first error; last an empty one at the end of the text."""
    lines = list(io.StringIO(text, newline=""))
    line_starts = [0, *accumulate(map(len, lines))]

    def place(row_column: tuple[int, int]) -> int:
        row, column = row_column
        return min(line_starts[min(row, len(line_starts)) - 1] + column, len(text))

    after_dot = False
    try:
        for token in tokenize.generate_tokens(iter([*lines, ""]).__next__):
            type_name = _TYPE_NAME[token.type]
            if type_name not in _PLACELESS:
                name = _class_of_name(token.string, after_dot) if type_name == "NAME" else _OF_TYPE[type_name]
                yield name, place(token.start), place(token.end)
                after_dot = token.string == "."
    except (tokenize.TokenError, SyntaxError):
        return
    yield "unknown", len(text), len(text)


def _class_of_name(word: str, after_dot: bool) -> str:
    if keyword.iskeyword(word):
        return "keyword"
    if after_dot:
        return "name"
    if keyword.issoftkeyword(word):
        return "soft keyword"
    return "builtin" if word in _BUILTINS else "name"
