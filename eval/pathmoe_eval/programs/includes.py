"""Which files a C or C++ program may include: those of the system's include folders and of the prompt's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pathmoe_eval.programs.c_lexer import INCLUDES, QUERIES
from pathmoe_eval.programs.lexemes import Lexeme, lexemes

_DEFINED = frozenset({"defined", "ifdef", "ifndef", "elifdef", "elifndef"})
_READING_DIRECTIVE = re.compile(r"(?:^|[\s;:])\.inc(?:bin|lude)\b")
_DATA_DIRECTIVE = re.compile(r"\s*\.(?:string|ascii|asciz)\b")


def has_forbidden_include(source: str, language: str, prompt_folder: Path | None) -> bool:
    """Whether a program names a file that it may not read, before anything is read.

    What `#include`, `#include_next`, `#import`, `#embed`, `#pragma GCC dependency` and `__has_include` name must be
    written out, no macro, and relative, without `..`; and a name in quotes that is in the prompt's folder must be a
    file there, no device or pipe and no link that leads out of it.
    """
    found = [lexeme for lexeme in lexemes(source, language) if lexeme.kind != "comment"]
    return any(not _is_allowed(name, prompt_folder) for name in _named_files(found))


def all_allowed(files: Iterable[str], folder: Path, system: Sequence[Path], own: Sequence[Path]) -> bool:
    """Whether the files that a compiler says it has read may be read.

    Args:
        files: relative to `folder`, or absolute.
        system: folders whose links are trusted, wherever they lead.
        own: folders in which a file must really lie.
    """
    real = [_real(place) for place in own]
    paths = {folder / file for file in files}
    outside = [path for path in paths if ".." in path.parts or not any(path.is_relative_to(place) for place in system)]
    return all(any(path.is_relative_to(place) for place in real) for path in map(_real, outside))


def dependencies(rule: str) -> list[str]:
    r"""The prerequisites of a makefile's rule `target: a b\ c \`, as `-MD` writes it."""
    _, _, listed = rule.replace("\\\n", " ").partition(": ")
    words = re.findall(r"(?:\\[\s#:\\]|[^\s\\]|\\)+", listed.strip())
    return [re.sub(r"\\([\s#:])", r"\1", word).replace("$$", "$") for word in words]


def assembly_reads_files(assembly: str) -> bool:
    """Whether inline assembly has an assembler read a file, by `.incbin` or `.include`; no assembler ever runs here."""
    return any(_READING_DIRECTIVE.search(line) and not _DATA_DIRECTIVE.match(line) for line in assembly.splitlines())


def _named_files(found: Sequence[Lexeme]) -> Iterator[Lexeme | None]:
    """What directives and queries name; None for what is not written out."""
    for name, rest in _directives(found):
        if name in INCLUDES:
            yield _written_out(rest[:1])
        elif name == "pragma" and [lexeme.text for lexeme in rest[:2]] == ["GCC", "dependency"]:
            yield _written_out(rest[2:3])
    code = [lexeme for lexeme in found if lexeme.kind != "whitespace"]
    for place, lexeme in enumerate(code):
        if lexeme.text in QUERIES:
            before = {earlier.text for earlier in code[max(0, place - 2) : place]}
            if not before & _DEFINED:
                yield _written_out(code[place + 2 : place + 3])


def _directives(found: Sequence[Lexeme]) -> Iterator[tuple[str, list[Lexeme]]]:
    """Name and lexemes of each line that begins with `#`, whitespace left out."""
    line: list[Lexeme] = []
    for lexeme in [*found, Lexeme("whitespace", "\n")]:
        if lexeme.kind != "whitespace":
            line.append(lexeme)
        elif "\n" in lexeme.text:
            if len(line) > 1 and line[0].text in ("#", "%:"):
                yield line[1].text, line[2:]
            line = []


def _written_out(operand: Sequence[Lexeme]) -> Lexeme | None:
    return operand[0] if operand and (operand[0].kind == "header" or operand[0].text.startswith('"')) else None


def _is_allowed(name: Lexeme | None, prompt_folder: Path | None) -> bool:
    if name is None:
        return False
    path = Path(name.text[1:-1])
    if path.is_absolute() or ".." in path.parts:
        return False
    if name.kind == "header" or prompt_folder is None or not os.path.lexists(prompt_folder / path):
        return True
    target = _real(prompt_folder / path)
    return target.is_file() and target.is_relative_to(_real(prompt_folder))


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve it takes a circle of links for what it is, not there
