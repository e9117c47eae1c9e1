"""Source text cut into lexemes: comments, blanks, names, keywords, numbers, strings, punctuation."""

from __future__ import annotations

from typing import NamedTuple

from pathmoe_eval.programs.c_lexer import c_pieces
from pathmoe_eval.programs.python_lexer import python_pieces

LANGUAGES = ("c", "c++", "python")
"""What can be cut, and compiled."""

KINDS = ("comment", "whitespace", "name", "keyword", "number", "string", "header", "punctuation")
"""Kinds of lexemes; a header is the `<name>` of an include."""


class Lexeme(NamedTuple):
    """A piece of a source."""

    kind: str
    text: str


def lexemes(source: str, language: str) -> list[Lexeme]:
    """The lexemes of a source, without gaps: their texts joined are the source.

    Of C and C++ they are those of the source with its lines spliced (a backslash before a line's end, and both, gone),
    as the standards have it. Macros are not expanded; what a raw string spliced is not undone. In the gaps of Python's
    own tokenizer is whitespace, the backslash that joins lines included; indentation is whitespace too.

    Raises:
        ValueError: Python's tokenizer finds no end to something, or an indentation that fits nothing.
    """
    pieces = python_pieces(source) if language == "python" else c_pieces(source, language)
    return [Lexeme(kind, text) for kind, text in pieces]
