"""Which line of the source each line of assembly is from, by the `.loc` directives of a compilation with `-g1`."""

from __future__ import annotations

import re

_FILE = re.compile(r'\s*\.file\s+(\d+)\s+(?:"(?:[^"\\]|\\.)*"\s+)?"((?:[^"\\]|\\.)*)"')
_LOCATION = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)")
_GLOBAL_LABEL = re.compile(r"[A-Za-z_$][\w.$]*:")
_INSTRUCTION = re.compile(r"\s+[A-Za-z]")


def source_lines(assembly: str, file_name: str) -> list[int | None]:
    """Line of the source for each line of the assembly, from 1; None but for instructions of the source.

    An instruction belongs to the `.loc` before it. None have labels, directives and data; instructions from other files
    (functions of headers), and those that the compiler says are of no line. A `#line` of the source moves its lines,
    as the compiler has it.

    Args:
        file_name: of the source, as it was given to the compiler, without folders.
    """
    own_files: set[str] = set()
    line_now: int | None = None
    found = []
    for line in assembly.split("\n"):
        if file := _FILE.match(line):
            if file[2].rpartition("/")[2] == file_name:
                own_files.add(file[1])
        elif location := _LOCATION.match(line):
            line_now = (int(location[2]) or None) if location[1] in own_files else None
        elif _GLOBAL_LABEL.match(line):
            line_now = None
        found.append(line_now if _INSTRUCTION.match(line) else None)
    return found
