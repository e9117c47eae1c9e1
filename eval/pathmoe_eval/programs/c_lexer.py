"""The lexical grammar of C and C++: translation phases 2 and 3, without trigraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator

_WORD = re.compile(r"\w+")
_C_WORDS = """
    alignas alignof auto bool break case char const constexpr continue default do double else enum extern false float
    for goto if inline int long nullptr register restrict return short signed sizeof static static_assert struct
    switch thread_local true typedef typeof typeof_unqual union unsigned void volatile while
    _Alignas _Alignof _Atomic _BitInt _Bool _Complex _Generic _Imaginary _Noreturn _Static_assert _Thread_local
    asm __asm __asm__ __attribute__ __inline __inline__ __restrict __restrict__ __typeof__ __volatile__
"""
_CPP_WORDS = """
    and and_eq bitand bitor catch char8_t char16_t char32_t class co_await co_return co_yield compl concept consteval
    constinit const_cast decltype delete dynamic_cast explicit export friend mutable namespace new noexcept not not_eq
    operator or or_eq private protected public reinterpret_cast requires static_cast template this throw try typeid
    typename using virtual wchar_t xor xor_eq
"""
_C_KEYWORDS = frozenset(_WORD.findall(_C_WORDS))
_CPP_KEYWORDS = (_C_KEYWORDS - {"restrict", "typeof", "typeof_unqual"}) | set(_WORD.findall(_CPP_WORDS))

INCLUDES = frozenset({"include", "include_next", "import", "embed"})
"""Directives that name a file to read."""

QUERIES = frozenset({"__has_include", "__has_include_next", "__has_embed"})
"""Operators of the preprocessor that ask whether a file is there."""

_SPLICE = re.compile(r"\\[ \t\v\f]*\r?\n")
_HEADER = re.compile(r"<[^>\n]*>")
_PIECE = re.compile(
    r"""
    (?P<comment> //[^\n]* | /\*.*?(?:\*/|\Z) )
  | (?P<string>
        (?:u8|[uUL])?R"(?P<delimiter>[^ ()\\\t\v\f\n]{0,16})\(.*?(?:\)(?P=delimiter)"|\Z)
      | (?:u8|[uUL])?"(?:\\.|[^"\\\n])*"?
      | (?:u8|[uUL])?'(?:\\.|[^'\\\n])*'?
    )
  | (?P<number> \.?[0-9](?:[eEpP][+-]|'\w|[\w.])* )
  | (?P<name> (?:[^\W\d]|\$|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8})(?:\w|\$|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8})* )
  | (?P<whitespace> \s+ )
  | (?P<punctuation>
        %:%: | \.\.\. | <<= | >>= | ->\* | <=> | <: | :> | <% | %> | %: | \#\# | :: | -> | \.\* | \+\+ | -- | << | >>
      | <= | >= | == | != | && | \|\| | \+= | -= | \*= | /= | %= | &= | \|= | \^= | .
    )
    """,
    re.VERBOSE | re.DOTALL,
)


def spliced(source: str) -> str:
    """A source with the lines joined that end in a backslash; gcc allows blanks after it."""
    return _SPLICE.sub("", source)


def num_splices(source: str) -> int:
    """Lines of a source that end in a backslash."""
    return len(_SPLICE.findall(source))


def c_pieces(source: str, language: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each lexeme of the spliced source; see `lexemes`.

    What is not closed goes to the end of its line, a comment to that of the source.

    Args:
        language: "c" or "c++".
    """
    text = spliced(source)
    keywords = _C_KEYWORDS if language == "c" else _CPP_KEYWORDS
    place, expected = 0, "directive"  # at the start of a line: "#" would begin one
    while place < len(text):
        header = _HEADER.match(text, place) if expected == "header" else None
        match = header or _PIECE.match(text, place)
        assert match is not None
        kind, piece = "header" if header else str(match.lastgroup), match.group()
        if kind == "name" and piece in keywords:
            kind = "keyword"
        yield kind, piece
        expected = _next_expected(expected, kind, piece)
        place = match.end()


def _next_expected(expected: str, kind: str, piece: str) -> str:
    """What may come next only here: a directive, its name, or a header."""
    if kind == "whitespace" and "\n" in piece:
        return "directive"
    if kind in ("whitespace", "comment"):
        return expected
    if expected == "directive" and piece in ("#", "%:"):
        return "directive's name"
    if (expected == "directive's name" and piece in INCLUDES) or piece in QUERIES:
        return "header"
    return "header" if expected == "header" and piece == "(" else ""
