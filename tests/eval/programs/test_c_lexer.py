"""Lexemes of C and C++: by hand, without loss, and code as it is when a compiler takes the comments out."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.c_functions import c_program
from pathmoe_eval.programs.c_lexer import c_pieces, num_splices, spliced

CHARACTERS = st.text(alphabet="aR1.e+\"'\\/*()<>#%: \n\tü", max_size=60)


def code(source, language="c"):
    return [piece for kind, piece in c_pieces(source, language) if kind not in ("comment", "whitespace")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("int x1=0x1Fu;", [("int", "keyword"), (" ", "whitespace"), ("x1", "name"), ("=", "punctuation"),
                           ("0x1Fu", "number"), (";", "punctuation")]),
        ("1.5e-3f .5 1..2", [("1.5e-3f", "number"), (" ", "whitespace"), (".5", "number"), (" ", "whitespace"),
                             ("1..2", "number")]),
        ("a//b\\\nc\nd", [("a", "name"), ("//bc", "comment"), ("\n", "whitespace"), ("d", "name")]),
        ("/*\"*/\"/*\"", [("/*\"*/", "comment"), ("\"/*\"", "string")]),
        ("'\\''L\"\\\"\"", [("'\\''", "string"), ("L\"\\\"\"", "string")]),
        ("a>>=b->c", [("a", "name"), (">>=", "punctuation"), ("b", "name"), ("->", "punctuation"), ("c", "name")]),
        ("#include <a//b>", [("#", "punctuation"), ("include", "name"), (" ", "whitespace"), ("<a//b>", "header")]),
        ("a<b>c", [("a", "name"), ("<", "punctuation"), ("b", "name"), (">", "punctuation"), ("c", "name")]),
        ("R\"x(\")\\)x\"y", [("R\"x(\")\\)x\"", "string"), ("y", "name")]),
        ("\"open\nx", [("\"open", "string"), ("\n", "whitespace"), ("x", "name")]),
        ("x/*open", [("x", "name"), ("/*open", "comment")]),
        ("in\\\nt", [("int", "keyword")]),
        ("grün $a", [("grün", "name"), (" ", "whitespace"), ("$a", "name")]),
    ],
)  # fmt: skip
def test_by_hand(source, expected):
    assert [(piece, kind) for kind, piece in c_pieces(source, "c")] == expected


def test_each_language_has_its_keywords():
    kinds = {language: [kind for kind, _ in c_pieces("class", language)] for language in ("c", "c++")}
    assert kinds == {"c": ["name"], "c++": ["keyword"]}


@given(CHARACTERS)
def test_nothing_is_lost(source):
    assert "".join(piece for _, piece in c_pieces(source, "c++")) == spliced(source)


def test_splices():
    assert spliced("a\\\nb\\ \r\nc\\d") == "abc\\d"
    assert num_splices("a\\\nb\\ \r\nc\\d") == 2


HARD = r"""
#include <stdio.h>
char *a = "/* no comment */", b = '"', *c = "\\"; // "why"
int d = 1 /* / why * */ / 2; /* // */ int e = 3 //* why */
;
"""


@pytest.mark.parametrize("source", [HARD, *(c_program(3, index) for index in range(20))])
def test_code_is_what_the_preprocessor_leaves_without_comments(source):
    version = subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout if shutil.which("gcc") else ""
    if not version or "clang" in version:
        pytest.skip("no GNU compiler")
    bare = subprocess.run(
        ["gcc", "-fpreprocessed", "-dD", "-E", "-P", "-"],
        input=source, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert code(bare) == code(source)
    assert "why" not in bare
