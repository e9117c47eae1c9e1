"""The tasks of eval/tasks: what is asked, that knowing nothing is chance, and that a trained model knows something."""

import io
import json
import keyword
import math
import sys
import tokenize
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import python_code
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.python_stdlib import python_stdlib
from pathmoe_eval import cli

TASKS = Path(__file__).resolve().parents[2] / "eval" / "tasks"
TEXT = """def f(a, b):
    x = [a for a in b]
    y = {a: b }
    if x not in y and (a or b):
        return g(a)[b] + "not (a) in"  # for b in (c)
"""


def held_out() -> list[str]:
    return list(python_code.held_out_texts())


def test_words_are_tokens_of_code_with_what_stands_before_them() -> None:
    found = [(site.word, site.context[-6:]) for site in python_code.sites(TEXT, python_code.KEYWORDS)]
    expected = [
        ("def", ""), ("for", " = [a "), ("in", " for a "), ("if", "\n    "), ("not", "  if x "), ("in", "x not "),
        ("and", " in y "), ("or", "d (a "), ("return", "\n        "),
    ]  # fmt: skip
    assert [word for word, _ in found] == [word for word, _ in expected if word != "def"]
    assert all(context.endswith(before[-6:]) for (_, context), (_, before) in zip(found, expected[1:], strict=True))
    brackets = [(site.word, site.context[-3:]) for site in python_code.sites(TEXT, python_code.BRACKETS)]
    assert brackets == [("]", "n b"), ("]", ")[b")]


@given(st.lists(st.sampled_from(["a", "b1", "(", ")", "[", "]", " ", "\n", "    ", "if", "in", "\f", "é", "'"])))
def test_a_context_and_its_word_stand_in_the_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    for words in (python_code.KEYWORDS, python_code.BRACKETS):
        for site in python_code.sites(text, words):
            begin = text.index(site.context + site.word)
            assert text[begin + len(site.context + site.word)].isspace()
            assert len(site.context) <= 400


def test_all_that_is_asked_about_is_a_keyword_or_a_bracket() -> None:
    assert all(map(keyword.iskeyword, python_code.KEYWORDS))
    tokens = tokenize.generate_tokens(io.StringIO("([{}])").readline)
    assert {*python_code.BRACKETS} < {token.string for token in tokens}


@pytest.mark.parametrize(("words", "num_choices"), [(python_code.KEYWORDS, 4), (python_code.BRACKETS, 2)])
def test_each_word_is_the_answer_equally_often_and_its_place_says_nothing(
    words: tuple[str, ...], num_choices: int
) -> None:
    questions = python_code.questions(held_out(), words, num_choices, 40)
    assert questions == python_code.questions(held_out(), words, num_choices, 40)
    answers = Counter(question["choices"][question["answer"]] for question in questions)
    assert answers == dict.fromkeys(words, 40)
    for question in questions:
        assert len(set(question["choices"])) == num_choices
        assert {*question["choices"]} <= {*words}
    places = Counter(question["answer"] for question in questions)
    assert all(is_chance(places[place], len(questions), num_choices) for place in range(num_choices))


def is_chance(number: int, num_questions: int, num_choices: int) -> bool:
    """Whether a count lies within four standard deviations of what drawing evenly gives."""
    share = 1 / num_choices
    return abs(number - num_questions * share) <= 4 * math.sqrt(num_questions * share * (1 - share))


@pytest.mark.parametrize(("words", "num_choices"), [(python_code.KEYWORDS, 4), (python_code.BRACKETS, 2)])
def test_a_fixed_preference_for_words_is_right_by_chance(words: tuple[str, ...], num_choices: int) -> None:
    questions = python_code.questions(held_out(), words, num_choices, 300)
    for seed in range(8):
        preference = Random(seed).sample(words, len(words))
        chosen = [min(question["choices"], key=preference.index) for question in questions]
        answers = [question["choices"][question["answer"]] for question in questions]
        assert is_chance(sum(map(str.__eq__, chosen, answers)), len(questions), num_choices)


@pytest.fixture(scope="module")
def other_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the standard library that the tasks have no questions about, 2 MB."""
    folder, asked = tmp_path_factory.mktemp("code"), {*held_out()}
    texts = [document.text for document in python_stdlib() if document.text not in asked]
    Random(0).shuffle(texts)
    num_files = next(n for n in range(len(texts)) if sum(map(len, texts[:n])) > 2_000_000)
    for number, text in enumerate(texts[:num_files]):
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.mark.slow
def test_a_model_that_was_trained_on_other_code_beats_chance(
    other_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathmoe.training.cli import main

    monkeypatch.setattr(sys, "argv", ["train.py"])
    settings = {
        "model.config.vocab_size": 1024, "model.config.hidden_size": 64, "model.config.num_hidden_layers": 4,
        "model.config.num_experts": 4, "model.config.layers_per_router": 4, "data.source": other_code,
        "data.sequence_length": 128, "trainer.max_steps": 240, "trainer.limit_val_batches": 1,
        "trainer.callbacks": "null", "run_dir": tmp_path / "run",
    }  # fmt: skip
    main(["fit", "--config", "tiny", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))])
    tasks = ",".join(str(TASKS / f"python_{name}.yaml") for name in ("keywords", "brackets"))
    arguments = ["--model", tmp_path / "run", "--tasks", tasks, "--limit", 300, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["pathmoe-eval", "tasks", *map(str, arguments)])
    cli.main()
    found = json.loads((tmp_path / "out" / "tasks.json").read_text())["tasks"]
    for name, chance in (("python_keywords", 1 / 4), ("python_brackets", 1 / 2)):
        (acc,) = found[name]["metrics"]
        assert acc["value_null"] == chance
        assert acc["interval"][0] > chance
