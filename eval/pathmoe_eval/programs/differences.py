"""What differs between the texts of two programs: comments, blank lines, spacing, names, or more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from pathmoe_eval.programs.c_lexer import num_splices
from pathmoe_eval.programs.lexemes import Lexeme, lexemes

DIFFERENCES = ("comments", "blank_lines", "spacing", "names", "other")
"""Ways in which two programs differ, any number at once; see `difference`."""

_COMMENT = "\0"  # stands for a comment where layout is looked at; no program that compiles has one


@dataclass(frozen=True, kw_only=True)
class ProgramForm:
    """A program taken apart; see `program_form`.

    Args:
        text: all of it.
        code: kind and text of each lexeme but comments and whitespace.
        comments: number of lexemes of code before, and text.
        blank_lines: number of lexemes of code before, and how many blank lines come there.
        spacing: whitespace before each lexeme of code and at the end: blanks, or a line's end and indentation.
    """

    text: str
    code: tuple[Lexeme, ...]
    comments: tuple[tuple[int, str], ...]
    blank_lines: tuple[tuple[int, int], ...]
    spacing: tuple[str, ...]

    @cached_property
    def code_without_names(self) -> tuple[Lexeme, ...]:
        """The code, every name replaced by the same."""
        return tuple(Lexeme("name", "") if lexeme.kind == "name" else lexeme for lexeme in self.code)


@dataclass(frozen=True, kw_only=True)
class GroupDifferences:
    """What differs within groups, over all pairs of programs of one group, so that large groups count most.

    Shares are of the pairs whose texts differ, None where there are none. A pair may differ in several ways; only
    `only_comments_or_blank_lines_share` is of pairs that differ in nothing else.
    """

    num_pairs: int
    num_differing_pairs: int
    comments_share: float | None
    blank_lines_share: float | None
    spacing_share: float | None
    names_share: float | None
    other_share: float | None
    only_comments_or_blank_lines_share: float | None


def program_form(source: str, language: str) -> ProgramForm:
    """Take a program apart, so that many can be compared.

    A line that holds nothing but a comment, or a part of one, is neither blank nor spacing: it comes and goes with its
    comment; and so do the blanks between a comment and the code beside it.

    Raises:
        ValueError: see `lexemes`.
    """
    code: list[Lexeme] = []
    comments, blank_lines, spacing = [], [], []
    gap = "\n"  # the program begins at the start of a line
    for lexeme in lexemes(source, language):
        if lexeme.kind == "comment":
            comments.append((len(code), lexeme.text))
            gap += "\n".join(_COMMENT for _ in lexeme.text.split("\n"))
        elif lexeme.kind == "whitespace":
            gap += lexeme.text.replace("\r\n", "\n")
        else:
            blank_lines.append((len(code), _num_blank_lines(gap)))
            spacing.append(_spacing(gap))
            code.append(lexeme)
            gap = ""
    blank_lines.append((len(code), _num_blank_lines(gap)))
    spacing += [_spacing(gap), str(num_splices(source))]
    return ProgramForm(
        text=source,
        code=tuple(code),
        comments=tuple(comments),
        blank_lines=tuple((place, number) for place, number in blank_lines if number),
        spacing=tuple(spacing),
    )


def difference(a: ProgramForm, b: ProgramForm) -> frozenset[str]:
    """In which of DIFFERENCES two programs differ; none where their texts are equal.

    - "other": what is left of the code without names differs: keywords, numbers, strings, punctuation, or its length;
    - "names": the names differ, and nothing else of the code;
    - "comments": their texts differ, or where they stand in the code;
    - "blank_lines": their numbers differ, or where they stand in the code;
    - "spacing": blanks, indentation or line ends between code differ.

    Where the code differs in length, places in it do not compare: comments and blank lines are compared by text and
    number in order, and spacing is not compared.
    """
    if a.text == b.text:
        return frozenset()
    found = set()
    if a.code != b.code:
        found.add("names" if a.code_without_names == b.code_without_names else "other")
    if len(a.code) == len(b.code):
        if a.comments != b.comments:
            found.add("comments")
        if a.blank_lines != b.blank_lines:
            found.add("blank_lines")
        if a.spacing != b.spacing:
            found.add("spacing")
    else:
        if [text for _, text in a.comments] != [text for _, text in b.comments]:
            found.add("comments")
        if [number for _, number in a.blank_lines] != [number for _, number in b.blank_lines]:
            found.add("blank_lines")
    return frozenset(found or {"spacing"})  # trailing blanks of comment lines, and the like


def group_differences(sources: Sequence[str], groups: Sequence[Sequence[int]], language: str) -> GroupDifferences:
    """What differs within groups of equivalent programs.

    Args:
        groups: places in `sources`, as `ProgramGroup.members`.

    Raises:
        ValueError: see `lexemes`.
    """
    num_pairs = 0
    found: Counter[frozenset[str]] = Counter()
    for members in groups:
        texts = Counter(sources[place] for place in members)
        num_pairs += len(members) * (len(members) - 1) // 2
        forms = [(program_form(text, language), number) for text, number in texts.items()]
        for (a, num_a), (b, num_b) in combinations(forms, 2):
            found[difference(a, b)] += num_a * num_b
    num_differing = found.total()

    def share(num: int) -> float | None:
        return num / num_differing if num_differing else None

    by_kind = {kind: share(sum(num for kinds, num in found.items() if kind in kinds)) for kind in DIFFERENCES}
    harmless = sum(num for kinds, num in found.items() if kinds <= {"comments", "blank_lines"})
    return GroupDifferences(
        num_pairs=num_pairs,
        num_differing_pairs=num_differing,
        comments_share=by_kind["comments"],
        blank_lines_share=by_kind["blank_lines"],
        spacing_share=by_kind["spacing"],
        names_share=by_kind["names"],
        other_share=by_kind["other"],
        only_comments_or_blank_lines_share=share(harmless),
    )


def _num_blank_lines(gap: str) -> int:
    """Blank lines in what lies between two lexemes; a gap that begins with a line's end may begin the program."""
    return sum(not line.strip() for line in gap.split("\n")[1:-1])


def _spacing(gap: str) -> str:
    """A gap without its blank lines, its comments and the blanks around these."""
    if "\n" not in gap:
        return re.sub(rf"[ \t]*{_COMMENT}", "", gap)
    first, *_, last = gap.split("\n")
    trailing = "" if _COMMENT in first else first
    return trailing + "\n" + re.sub(rf"{_COMMENT}[ \t]*", "", last)
