"""Lexemes of Python: without loss, and comments that do not change what is parsed."""

import ast
from itertools import islice

import pytest

from pathmoe.data.python_stdlib import python_stdlib
from pathmoe_eval.programs.python_lexer import python_pieces

STDLIB = [document.text for document in islice(python_stdlib(), 30)]


def test_by_hand():
    source = "def f(x):  # why\n    return x + \\\n 0x1F\n\n"
    assert list(python_pieces(source)) == [
        ("keyword", "def"), ("whitespace", " "), ("name", "f"), ("punctuation", "("), ("name", "x"),
        ("punctuation", ")"), ("punctuation", ":"), ("whitespace", "  "), ("comment", "# why"), ("whitespace", "\n"),
        ("whitespace", "    "), ("keyword", "return"), ("whitespace", " "), ("name", "x"), ("whitespace", " "),
        ("punctuation", "+"), ("whitespace", " \\\n "), ("number", "0x1F"), ("whitespace", "\n"), ("whitespace", "\n"),
    ]  # fmt: skip


def test_strings_with_fields_are_no_whitespace():
    source = "x = f'a{{b}} {y!r:>{z}} }}'\n"
    pieces = list(python_pieces(source))
    assert "".join(text for _, text in pieces) == source
    assert [text for kind, text in pieces if kind == "whitespace" and text.strip()] == []


@pytest.mark.parametrize("source", STDLIB)
def test_comments_are_all_that_parsing_ignores(source):
    pieces = list(python_pieces(source))
    assert "".join(text for _, text in pieces) == source
    without = "".join(text for kind, text in pieces if kind != "comment")
    assert ast.dump(ast.parse(without)) == ast.dump(ast.parse(source))


@pytest.mark.parametrize("source", ["x = (", "if x:\n        y\n    z\n"])
def test_what_is_no_python_is_an_error(source):
    with pytest.raises(ValueError, match=r"^source \(.*\) must be Python: "):
        list(python_pieces(source))
