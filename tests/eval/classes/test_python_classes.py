"""Classes of Python tokens: character by character in the interpreter's own library, and in small documents by hand."""

# Shapes: N tokens.

import ast
import builtins
import io
import keyword
import re
import tokenize
from collections import Counter
from itertools import accumulate, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.python_stdlib import python_stdlib
from pathmoe.data.tokenizer import train_bpe
from pathmoe_eval.classes.python_classes import PYTHON_CLASSES, python_classes
from pathmoe_eval.classes.token_spans import encode_with_spans

STDLIB = [document.text for document in islice(python_stdlib(), 40)]


def of_characters(text):
    return python_classes(text, [(place, place + 1) for place in range(len(text))])


def written(text):
    """Runs of characters of one class, as (text, class)."""
    runs = []
    for character, name in zip(text, of_characters(text), strict=True):
        if runs and runs[-1][1] == name:
            runs[-1][0] += character
        else:
            runs.append([character, name])
    return [tuple(run) for run in runs]


def test_a_document_by_hand():
    text = "def f(x, *, k=0x1F):  # why\n    return (len(x) +\n        x.len) # \u00e9\n\nprint('a', b'c')\n"
    assert written(text) == [
        ("def", "keyword"), (" ", "whitespace"), ("f", "name"), ("(", "operator"), ("x", "name"), (",", "operator"),
        (" ", "whitespace"), ("*,", "operator"), (" ", "whitespace"), ("k", "name"), ("=", "operator"),
        ("0x1F", "number"), ("):", "operator"), ("  ", "whitespace"), ("# why", "comment"), ("\n", "newline"),
        ("    ", "indentation"), ("return", "keyword"), (" ", "whitespace"), ("(", "operator"), ("len", "builtin"),
        ("(", "operator"), ("x", "name"), (")", "operator"), (" ", "whitespace"), ("+", "operator"),
        ("\n", "line break"), ("        ", "indentation"), ("x", "name"), (".", "operator"), ("len", "name"),
        (")", "operator"), (" ", "whitespace"), ("# \u00e9", "comment"), ("\n", "newline"), ("\n", "line break"),
        ("print", "builtin"), ("(", "operator"), ("'a'", "string"), (",", "operator"), (" ", "whitespace"),
        ("b'c'", "string"), (")", "operator"), ("\n", "newline"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("match x:\n", [("match", "soft keyword"), (" ", "whitespace"), ("x", "name"), (":", "operator")]),
        ("re.match", [("re", "name"), (".", "operator"), ("match", "name")]),
        ("a \\\n b", [("a", "name"), (" \\\n", "whitespace"), (" ", "indentation"), ("b", "name")]),
        ("None", [("None", "keyword")]),
        ("x\r\n", [("x", "name"), ("\r\n", "newline")]),
        ("'''a\n b'''", [("'''a\n b'''", "string")]),
        ("f(\n", [("f", "name"), ("(", "operator"), ("\n", "line break")]),
        ("x = 1\n   \n", [("x", "name"), (" ", "whitespace"), ("=", "operator"), (" ", "whitespace"), ("1", "number"),
                          ("\n", "newline"), ("   ", "indentation"), ("\n", "line break")]),
    ],
)  # fmt: skip
def test_small_documents(text, expected):
    assert written(text)[: len(expected)] == expected


def test_after_an_error_all_is_unknown():
    text = "x = 1\nif x:\n        y\n    z = 'zz'\n"
    assert [name for _, name in written(text)[:5]] == ["name", "whitespace", "operator", "whitespace", "number"]
    assert written(text)[-1] == ("    z = 'zz'\n", "unknown")
    assert written("a = '''\nb\nc") == [
        ("a", "name"), (" ", "whitespace"), ("=", "operator"), (" '''\nb\nc", "unknown")
    ]  # fmt: skip


def kind_of(node):
    """The classes that the first character of a syntax tree's node may have; None where the tree does not say."""
    if isinstance(node, ast.Name):
        return {"builtin"} if hasattr(builtins, node.id) and node.id[0] != "_" else {"name", "soft keyword"}
    if not isinstance(node, ast.Constant) or node.value is ...:
        return None
    if node.value is None or isinstance(node.value, bool):
        return {"keyword"}
    return {"string"} if isinstance(node.value, str | bytes) else {"number"}


@pytest.mark.parametrize("number", range(6))
def test_names_numbers_and_strings_of_the_library_are_where_its_syntax_tree_has_them(number):
    text = [document for document in STDLIB if len(document) > 10_000][number]
    lines = text.splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]
    classes = of_characters(text)
    seen = Counter()
    for node in ast.walk(ast.parse(text)):
        expected = kind_of(node)
        # columns are bytes, and the parts of an f-string have none of their own
        if expected is None or not lines[node.lineno - 1].isascii() or re.search("f['\"]", lines[node.lineno - 1]):
            continue
        found = classes[starts[node.lineno - 1] + node.col_offset]
        assert found in expected, ast.dump(node)
        seen[found] += 1
    assert {"name", "builtin", "string", "number", "keyword"} <= seen.keys()
    assert seen.total() > 200


def test_tokens_of_the_library_have_the_class_of_most_of_their_characters():
    tokenizer = train_bpe(STDLIB, 800)
    seen = Counter()
    for text in [*STDLIB[:15], "x = 'h\u00e9llo \u65e5\u672c'  # \u03b1 \U0001f600\r\n\ty = x\n"]:
        _, spans_N2 = encode_with_spans(tokenizer, text)
        characters = of_characters(text)
        for (start, end), name in zip(spans_N2.tolist(), python_classes(text, spans_N2.tolist()), strict=True):
            counts = Counter(characters[start:end])
            assert name == min(counts, key=lambda c: (-counts[c], PYTHON_CLASSES.index(c)))
            seen[name] += 1
    assert set(PYTHON_CLASSES) - seen.keys() <= {"error", "unknown", "soft keyword"}


def test_blanks_before_a_word_or_sign_do_not_decide():
    text = "x = y if z else 1"
    spans = [(0, 1), (1, 3), (3, 5), (5, 8), (8, 10), (10, 15), (15, 17)]
    assert python_classes(text, spans) == ["name", "operator", "name", "keyword", "name", "keyword", "number"]


def test_each_lexical_token_has_its_class_and_nothing_else_does():
    text = STDLIB[3]
    expected = ["?"] * len(text)
    starts = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and keyword.iskeyword(token.string):
            first = starts[token.start[0] - 1] + token.start[1]
            expected[first : first + len(token.string)] = ["keyword"] * len(token.string)
    assert [name == "keyword" for name in of_characters(text)] == [name == "keyword" for name in expected]


@given(st.text(st.sampled_from("ab1 \t\n\r\\'\"#()[]:=.@$?\u00e9\f\0"), max_size=25))
def test_any_text_gets_classes(text):
    assert set(of_characters(text)) <= set(PYTHON_CLASSES)
    assert python_classes(text, [(0, 0)]) == ["unknown"]
