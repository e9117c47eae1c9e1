"""Classes of text tokens: by hand, against a walk over the characters, and on the licence text of a real tokenizer."""

# Shapes: N tokens.

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.tokenizer import train_bpe
from pathmoe_eval.classes.text_classes import FUNCTION_WORDS, TEXT_CLASSES, text_classes
from pathmoe_eval.classes.token_spans import encode_with_spans

LICENCE = (Path(__file__).resolve().parents[3] / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " cat", " saw", " Ann", "abel", "."],
         ["function word", "word beginning", "word beginning", "capitalised word", "word continuation", "punctuation"]),
        (["In", " 1", "984", ",", " 3", ".14", " ", "m", "\n\n"],
         ["function word", "numeral", "numeral", "punctuation", "numeral", "numeral", "whitespace", "word beginning",
          "whitespace"]),
        (["don", "'t", " '", "quote", "'"],
         ["word beginning", "word continuation", "punctuation", "word beginning", "punctuation"]),
        ([" of", "fer", " of"], ["word beginning", "word continuation", "function word"]),
        (["\u00c9", "cole", " \u0939\u093f", "\u0928\u094d\u0926\u0940"],
         ["capitalised word", "word continuation", "word beginning", "word continuation"]),
        (["x", "2", "_", "y", " \u00bd", " \u20ac"],
         ["word beginning", "numeral", "punctuation", "word beginning", "numeral", "punctuation"]),
        ([" ,", "  a", ""], ["punctuation", "whitespace", "unknown"]),
    ],
)  # fmt: skip
def test_by_hand(pieces, expected):
    text, spans = "", []
    for piece in pieces:
        spans.append((len(text), len(text) + len(piece)))
        text += piece
    assert text_classes(text, spans) == expected


def walk(text):
    """Class of each character on its own, by a walk over the words of an ASCII text."""
    classes, place = [], 0
    while place < len(text):
        character = text[place]
        end = place + 1
        if character.isalpha():
            while end < len(text) and (
                text[end].isalpha() or (text[end] == "'" and end + 1 < len(text) and text[end + 1].isalpha())
            ):
                end += 1
            word = text[place:end]
            first = "function word" if word.lower() in FUNCTION_WORDS else "word beginning"
            if first == "word beginning" and character.isupper():
                first = "capitalised word"
            classes += [first] + ["word continuation"] * (end - place - 1)
        elif character.isdigit():
            while end < len(text) and (
                text[end].isdigit() or (text[end] in ".," and end + 1 < len(text) and text[end + 1].isdigit())
            ):
                end += 1
            classes += ["numeral"] * (end - place)
        else:
            classes.append("whitespace" if character.isspace() else "punctuation")
        place = end
    return classes


@given(st.text(st.sampled_from("aIT ofthe'.,12-\n"), max_size=30))
def test_each_character_equals_a_walk(text):
    assert text_classes(text, [(place, place + 1) for place in range(len(text))]) == walk(text)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_gets_classes(text):
    classes = text_classes(text, [(place, place + 1) for place in range(len(text))])
    assert set(classes) <= set(TEXT_CLASSES) - {"unknown"}
    assert [name == "whitespace" for name in classes] == [character.isspace() for character in text]


def test_tokens_of_a_real_text():
    tokenizer = train_bpe([LICENCE], 500)
    ids, spans_N2 = encode_with_spans(tokenizer, LICENCE)
    classes = text_classes(LICENCE, spans_N2.tolist())
    by_text = {}
    for (start, end), name in zip(spans_N2.tolist(), classes, strict=True):
        by_text.setdefault(LICENCE[start:end], set()).add(name)
    assert len(classes) == len(ids)
    assert by_text[" and"] == {"function word"}
    assert by_text[","] == {"punctuation"}
    assert by_text[" License"] == {"capitalised word"}
    assert set(classes) == set(TEXT_CLASSES) - {"unknown"}
