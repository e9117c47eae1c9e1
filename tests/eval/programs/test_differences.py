"""What differs between programs: by hand, by planted changes, and shares by counting pairs one by one."""

import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.data.c_functions import c_program
from pathmoe_eval.programs.differences import DIFFERENCES, difference, group_differences, program_form
from pathmoe_eval.programs.lexemes import lexemes

BASE = "int f(int n) {\n    int s = 0;\n    while (n) s += n--;\n    return s;\n}\n"


def differs(a, b, language="c"):
    found = difference(program_form(a, language), program_form(b, language))
    assert found == difference(program_form(b, language), program_form(a, language))
    return found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", set()),
        ("int s", "// so far\n    int s", {"comments"}),
        ("int s = 0;", "int s = 0;  /* so far */", {"comments"}),
        ("int s", "/* so\n     * far\n     */\n    int s", {"comments"}),
        ("int s", "/* so far */ int s", {"comments"}),
        ("int f", "/* sums */\nint f", {"comments"}),
        ("}\n", "}\n// done\n", {"comments"}),
        ("    while", "\n    while", {"blank_lines"}),
        ("    while", "  \n\n    while", {"blank_lines"}),
        ("}\n", "}\n\n", {"blank_lines"}),
        ("int f", "\nint f", {"blank_lines"}),
        ("int s", "// so far\n\n    int s", {"comments", "blank_lines"}),
        ("    int s", "\tint s", {"spacing"}),
        ("s = 0", "s=0", {"spacing"}),
        (" {\n", "\n{\n", {"spacing"}),
        ("}\n", "}", {"spacing"}),
        ("int s = 0;\n", "int s = 0; \n", {"spacing"}),
        ("int s = 0;", "int s = \\\n0;", {"spacing"}),
        ("s = 0", "s = 0x0", {"other"}),
        ("s += n--", "s = s + n--", {"other"}),
        ("s += n--;", "{ s += n--; }", {"other"}),
        ("int s = 0;", "int s = 0; // zero\n    ;", {"other", "comments"}),
        ("int s = 0;", "\n    int s = 0;;", {"other", "blank_lines"}),
    ],
)
def test_by_hand(old, new, expected):
    assert differs(BASE, BASE.replace(old, new)) == expected


def test_names():
    renamed = re.sub(r"\bs\b", "sum", BASE)
    assert differs(BASE, renamed) == {"names"}
    assert differs(BASE, "// sums\n" + renamed) == {"names", "comments"}
    assert differs(BASE, re.sub(r"\bs\b", "0", BASE)) == {"other"}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("def f(n):\n    # doubles\n    return n * 2\n", {"comments"}),
        ("def f(n):\n\n    return n * 2\n", {"blank_lines"}),
        ("def f(n):\n  return n*2\n", {"spacing"}),
        ("def f(m):\n    return m * 2\n", {"names"}),
        ("def f(n):\n    return (n * 2)\n", {"other"}),
    ],
)
def test_python_by_hand(changed, expected):
    assert differs("def f(n):\n    return n * 2\n", changed, "python") == expected


@given(st.integers(0, 30), st.data())
def test_planted_changes_of_layout(index, data):
    source = c_program(11, index)
    lines = source.split("\n")
    of_code = [place for place, line in enumerate(lines) if re.match(r"\s*[a-z#}]", line)]  # not within a comment
    place = data.draw(st.sampled_from([place for place in of_code if not lines[place - 1].endswith("\\")]))
    indent = data.draw(st.sampled_from(["", "  ", "\t"]))
    commented = "\n".join([*lines[:place], f"{indent}// here", *lines[place:]])
    spread = "\n".join([*lines[:place], indent, *lines[place:]])
    assert differs(source, commented) == {"comments"}
    assert differs(source, spread) == {"blank_lines"}
    assert differs(commented, spread) == {"comments", "blank_lines"}


@given(st.integers(0, 20), st.integers(0, 20))
def test_code_decides_names_and_other(one, two):
    a, b = c_program(13, one), c_program(13, two)
    code = [[x for x in lexemes(text, "c") if x.kind not in ("comment", "whitespace")] for text in (a, b)]
    found = differs(a, b)
    assert bool(found & {"names", "other"}) == (code[0] != code[1])
    assert ("names" in found) <= (len(code[0]) == len(code[1]))
    assert found <= set(DIFFERENCES)
    assert bool(found) == (a != b)


def test_shares_over_the_pairs_of_groups():
    comment, blank, spaced = (BASE.replace("int s", new) for new in ("// c\n    int s", "\n    int s", "int  s"))
    sources = [BASE, comment, BASE, "int x;", blank, spaced, comment + "\n", "int y;"]
    groups = [(0, 1, 2, 4, 5, 6), (3, 7)]
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    kinds = [differs(sources[a], sources[b]) for a, b in pairs]
    differing = [found for found in kinds if found]
    found = group_differences(sources, groups, "c")
    assert (found.num_pairs, found.num_differing_pairs) == (16, 15)
    for kind in DIFFERENCES:
        share = sum(kind in one for one in differing) / 15
        assert getattr(found, f"{kind}_share") == pytest.approx(share)
    only = sum(one <= {"comments", "blank_lines"} for one in differing) / 15
    assert 0 < only < 1
    assert found.only_comments_or_blank_lines_share == pytest.approx(only)


def test_without_pairs_there_are_no_shares():
    found = group_differences([BASE, BASE], [(0,), (1,)], "c")
    assert (found.num_pairs, found.num_differing_pairs, found.comments_share) == (0, 0, None)
    assert group_differences([BASE, BASE], [(0, 1)], "c").only_comments_or_blank_lines_share is None
