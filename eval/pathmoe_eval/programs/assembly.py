"""Assembly text without what says nothing of the program: what two compilations of equal code agree in."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

# A label that never leaves the file. No program has such names: symbols of macOS begin with an underscore.
_LOCAL_LABEL = re.compile(r"(?<![\w.])[Ll][A-Z_][\w.$]*" if sys.platform == "darwin" else r"(?<![\w.])\.L[\w.$]+")
_DEFINITION = re.compile(rf"({_LOCAL_LABEL.pattern}):")
_BLANKS = re.compile(r"[ \t]+")
_STRING = re.compile(r'("(?:\\.|[^"\\])*"?)')
_SECTION = re.compile(r"\.(?:section (\S+)|(?:text|data|bss)\b)")
_OTHER_SECTION = re.compile(r"\.(?:pushsection|popsection|previous|subsection)\b")
_DROPPED_SECTION = re.compile(r"\.data[\w.]*\.DW\.ref\.|\.debug_|\.note\.(?:GNU-stack|gnu\.property)\b|__DWARF,")
_DROPPED_DIRECTIVE = re.compile(
    r"\.(?:file|ident|loc|version|build_version|addrsig|addrsig_sym|subsections_via_symbols"
    r"|(?:hidden|weak) DW\.ref\.\w+|cfi_(?!personality\b|lsda\b)\w+)\b"
)


class NormalisedLine(NamedTuple):
    """A line of assembly that was kept.

    Args:
        text: normalised.
        place: its number among the lines of the assembly, from 0.
    """

    text: str
    place: int


def normalised(assembly: str) -> list[NormalisedLine]:
    """The lines of a compiler's assembly that say what the program is.

    Dropped:
    - comments and markers: lines that begin with `#`, such as those around inline assembly, which hold line numbers;
    - directives on where code is from and who compiled it: `.file`, `.loc`, `.ident`, `.version`, `.build_version`,
      `.addrsig`, `.subsections_via_symbols`;
    - `.cfi_*`, how to unwind the stack, which follows from the instructions, but for `.cfi_personality` and
      `.cfi_lsda`;
    - sections with debugging information and notes (`.debug_*`, `.note.*`), with all that is in them;
    - `DW.ref.*`, pointers for the tables of exceptions, which say only their own name, in an order that follows from
      where the compiler has them in memory;
    - local labels (`.L...`) that no line kept refers to, and changes of section before which nothing comes;
    - blank lines, and how many blanks stand between words, but for those in strings.

    Local labels are numbered anew, in order of their first appearance. Kept are instructions, data, names of functions
    and of variables that have one in the assembly, their alignment, size, type and visibility, and the order of it all.
    So equal means the same code, data, names and order of functions; programs that behave alike often differ in it.
    Names of parameters and of automatic variables are not in assembly, those of `static` ones are.
    """
    kept = _without_empty_sections(_without_unused_labels(_kept_lines(assembly)))
    numbers: dict[str, str] = {}

    def number(label: re.Match[str]) -> str:
        return numbers.setdefault(label.group(), f".L{len(numbers)}")

    return [NormalisedLine(_outside_strings(line.text, _LOCAL_LABEL, number), line.place) for line in kept]


def digest(lines: Sequence[str]) -> str:
    """SHA-256 of lines, in hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _kept_lines(assembly: str) -> list[NormalisedLine]:
    kept = []
    is_dropped = False
    for place, line in enumerate(assembly.split("\n")):
        text = _outside_strings(line.strip(), _BLANKS, " ")
        if text.startswith("."):
            if section := _SECTION.match(text):
                is_dropped = bool(_DROPPED_SECTION.match(section[1] or ""))
            elif _OTHER_SECTION.match(text):
                is_dropped = False
            if _DROPPED_DIRECTIVE.match(text):
                continue
        if text and not is_dropped and not text.startswith("#"):
            kept.append(NormalisedLine(text, place))
    return kept


def _without_unused_labels(lines: Sequence[NormalisedLine]) -> list[NormalisedLine]:
    used: set[str] = set()
    for line in lines:
        if not _DEFINITION.fullmatch(line.text):
            used.update(label for code in _STRING.split(line.text)[::2] for label in _LOCAL_LABEL.findall(code))
    return [line for line in lines if not (label := _DEFINITION.fullmatch(line.text)) or label[1] in used]


def _without_empty_sections(lines: Sequence[NormalisedLine]) -> list[NormalisedLine]:
    """Lines without changes to the section that one is in, or that is left before anything comes."""
    kept: list[NormalisedLine] = []
    current, pending = "", None
    for line in lines:
        if _SECTION.match(line.text):
            pending = line
            continue
        if pending is not None and pending.text != current:
            kept.append(pending)
            current = pending.text
        pending = None
        kept.append(line)
        if _OTHER_SECTION.match(line.text):
            current = ""
    return kept


def _outside_strings(text: str, pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str]) -> str:
    if '"' not in text:
        return pattern.sub(replacement, text)
    parts = _STRING.split(text)
    parts[::2] = [pattern.sub(replacement, code) for code in parts[::2]]
    return "".join(parts)
