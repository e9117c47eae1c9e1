"""Taggers by name, and what they must return."""

import pytest

from pathmoe_eval.classes.python_classes import python_classes
from pathmoe_eval.classes.text_classes import text_classes
from pathmoe_eval.classes.token_classes import MAX_CLASSES, ClassNames, load_tagger, tagged


def test_built_in_taggers():
    assert load_tagger("python") is python_classes
    assert load_tagger("text") is text_classes


def test_a_tagger_of_the_users_own_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a_tagger_of_mine.py").write_text("def tag(text, spans):\n    return [text[a:b] for a, b in spans]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load_tagger("a_tagger_of_mine:tag")("abc", [(0, 1), (1, 3)]) == ["a", "bc"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pythn", r"tagger \(pythn\) must be one of python, text, or module:function; change it"),
        (":tag", r"tagger \(:tag\) must be one of"),
        ("no.such.module:tag", r"can be imported \(ModuleNotFoundError: No module named 'no'\); correct it"),
        ("a_broken_tagger:tag", r"can be imported \(SyntaxError: .*\); correct it"),
        ("math:tag", r"tagger \(math:tag\) must name a function, which math has not"),
        ("math:pi", r"tagger \(math:pi\) must name a function, which math has not"),
    ],
)
def test_a_tagger_that_is_not_there(name, message, tmp_path, monkeypatch):
    (tmp_path / "a_broken_tagger.py").write_text("def tag(:\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(ValueError, match=message) as error:
        load_tagger(name)
    assert "\n" not in str(error.value)


def test_names_are_numbered_as_they_come():
    names = ClassNames()
    assert names.ids(["b", "a", "b"]) == [0, 1, 0]
    assert names.ids(["c", "a"]) == [2, 1]
    assert names.names == ("b", "a", "c")


@pytest.mark.parametrize(
    ("tagger", "message"),
    [
        (lambda text, spans: ["a"], r"tagger \(1 classes for 3 tokens\) must return one string for each span"),
        (lambda text, spans: [1] * len(spans), r"tagger \(a class of type int for 3 tokens\) must return one string"),
    ],
)
def test_a_tagger_that_returns_something_else(tagger, message):
    with pytest.raises(ValueError, match=message):
        tagged(tagger, "a+b", [(0, 1), (1, 2), (2, 3)])


def test_too_many_classes():
    with pytest.raises(ValueError, match=rf"tagger \({MAX_CLASSES + 1} classes\) must give at most {MAX_CLASSES}"):
        ClassNames().ids(map(str, range(MAX_CLASSES + 1)))
