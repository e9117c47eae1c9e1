"""Lexemes in each language."""

import pytest

from pathmoe_eval.programs.lexemes import KINDS, LANGUAGES, Lexeme, lexemes

SOURCES = {
    "c": "#include <a.h>\n/* b */ int c = 1; char *d = \"e\";\n",
    "c++": "#include <a.h>\n// b\nclass c { int d = 1; }; auto e = \"f\";\n",
    "python": "# b\nif c:\n    d = 1, 'e'\n",
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_all_kinds_occur_and_nothing_is_lost(language):
    found = lexemes(SOURCES[language], language)
    assert {lexeme.kind for lexeme in found} == set(KINDS) - ({"header"} if language == "python" else set())
    assert "".join(lexeme.text for lexeme in found) == SOURCES[language]


def test_languages_differ_in_what_a_comment_is():
    comments = {language: [x for x in lexemes("# a\n//b\n", language) if x.kind == "comment"] for language in LANGUAGES}
    assert comments == {
        "c": [Lexeme("comment", "//b")],
        "c++": [Lexeme("comment", "//b")],
        "python": [Lexeme("comment", "# a")],
    }
