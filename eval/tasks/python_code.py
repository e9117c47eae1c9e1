"""Questions about Python code that no run on python-stdlib with the default split was trained on.

The answer is what stands there. Each answer is as frequent as any other, and the other choices are drawn evenly, so
that who knows nothing of the context is right by chance, however often a keyword or bracket occurs. The same
interpreter gives the same questions; another one has another library.
"""

from __future__ import annotations

import keyword
import random
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import accumulate
from typing import Any, NamedTuple

from datasets import Dataset

from pathmoe.data import TokenDataModule
from pathmoe.data.sources import PYTHON_STDLIB

KEYWORDS = ("and", "def", "elif", "except", "for", "from", "if", "import", "in", "is", "not", "or", "return")
BRACKETS = (")", "]")

_KEYWORD_CHOICES = 4
_KEYWORD_QUESTIONS = 80  # of each keyword
_BRACKET_QUESTIONS = 300  # of each bracket
_CONTEXT_CHARACTERS = 400
_SEED = 0


class Site(NamedTuple):
    """A place in a text where a word is to be guessed."""

    context: str
    """The lines before, and its own up to it."""
    word: str


def keywords(**_: Any) -> dict[str, Dataset]:
    """The data of `python_keywords`."""
    return {"test": Dataset.from_list(questions(held_out_texts(), KEYWORDS, _KEYWORD_CHOICES, _KEYWORD_QUESTIONS))}


def brackets(**_: Any) -> dict[str, Dataset]:
    """The data of `python_brackets`."""
    return {"test": Dataset.from_list(questions(held_out_texts(), BRACKETS, len(BRACKETS), _BRACKET_QUESTIONS))}


def held_out_texts() -> Iterator[str]:
    """The files of the standard library that runs with the default split are validated on."""
    return (document.text for document in TokenDataModule(source=PYTHON_STDLIB).held_out_documents())


def questions(
    texts: Iterable[str], words: tuple[str, ...], num_choices: int, number_of_each: int
) -> list[dict[str, Any]]:
    """Questions in random order, as many with each word as the answer: `number_of_each`, or what the rarest has."""
    draws = random.Random(_SEED)
    sites_of_word: dict[str, list[Site]] = defaultdict(list)
    for text in texts:
        for site in sites(text, words):
            sites_of_word[site.word].append(site)
    number = min(number_of_each, *(len(sites_of_word[word]) for word in words))
    drawn = [site for word in words for site in draws.sample(sites_of_word[word], number)]
    draws.shuffle(drawn)
    return [_question(site, words, num_choices, draws) for site in drawn]


def _question(site: Site, words: tuple[str, ...], num_choices: int, draws: random.Random) -> dict[str, Any]:
    others = draws.sample([word for word in words if word != site.word], num_choices - 1)
    choices = draws.sample([site.word, *others], num_choices)
    return {"context": site.context, "choices": choices, "answer": choices.index(site.word)}


def sites(text: str, words: tuple[str, ...]) -> Iterator[Site]:
    """Where one of the words is a token of its own for tokenizers too: no bracket next to other punctuation.

    Brackets follow a letter or digit, and all words come before a space or the end of the line.
    """
    begin_of_line = [0, *accumulate(map(len, StringIO(text)))]
    try:
        tokens = list(tokenize.generate_tokens(StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return
    for token in tokens:
        if token.string not in words or token.type not in (tokenize.NAME, tokenize.OP):
            continue
        place = begin_of_line[token.start[0] - 1] + token.start[1]
        before, after = text[:place], text[place + len(token.string) :]
        if after[:1].isspace() and (keyword.iskeyword(token.string) or before[-1:].isalnum()):
            begin = place - min(place, _CONTEXT_CHARACTERS)
            context = before[begin:] if begin == 0 else before[begin:].partition("\n")[2]
            if context.strip():
                yield Site(context, token.string)
