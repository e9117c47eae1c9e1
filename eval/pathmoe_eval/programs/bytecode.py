"""A script that compiles Python and never runs it: `python -I -S bytecode.py LEVEL SOURCE OUTPUT`.

It stands alone, on the standard library, so that any Python from 3.10 on can run it under limits. OUTPUT has a line of
text for each line of `normalised_bytecode`: the line of the source, 0 for none, a tab, and the text.
"""

from __future__ import annotations

import opcode
import sys
from collections.abc import Iterator
from types import CodeType

NO_MEMORY = 3
"""Exit status where the interpreter says so; 1 is what the language does not allow."""

_VARIADIC_FLAGS = (0x04, 0x08)  # *args, **kwargs


def normalised_bytecode(code: CodeType) -> Iterator[tuple[int, str]]:
    """Line of the source (0 for none) and text of all that a code object and those within it are.

    Dropped: the file's name, line and column numbers, names of local variables but for parameters, which callers may
    give by name, and those that inner functions share; the interpreter's caches, and the order of the elements of
    constant sets. Kept: instructions with their arguments, constants with their types, documentation strings among them
    (level 2 drops these itself), other names, flags, the tables of exceptions.
    """
    num_parameters = code.co_argcount + code.co_kwonlyargcount + sum(bool(code.co_flags & f) for f in _VARIADIC_FLAGS)
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    yield 0, f"code {getattr(code, 'co_qualname', code.co_name)!a}"
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_nlocals, code.co_stacksize)
    yield 0, f"counts {counts} flags {code.co_flags:#x}"
    yield 0, f"parameters {code.co_varnames[:num_parameters]!a}"
    yield 0, f"shared {code.co_cellvars!a} {code.co_freevars!a}"
    yield 0, f"names {code.co_names!a}"
    yield 0, f"constants {_written(code.co_consts)}"
    yield 0, f"exceptions {getattr(code, 'co_exceptiontable', b'').hex()}"
    line_of = {
        place: line or 0 for start, stop, line in code.co_lines() for place in range(start, stop, 2) if line is not None
    }
    for place in range(0, len(code.co_code), 2):
        name = opcode.opname[code.co_code[place]]
        if name != "CACHE":
            yield line_of.get(place, 0), f"{name} {code.co_code[place + 1]}"
    for constant in inner:
        yield from normalised_bytecode(constant)


def main(arguments: list[str]) -> int:
    """Compile, and write the result; returns the exit status."""
    level, source, output = arguments
    with open(source, encoding="utf-8", newline="") as file:
        text = file.read()
    try:
        code = compile(text, "candidate.py", "exec", dont_inherit=True, optimize=int(level))
        lines = [f"{line}\t{written}\n" for line, written in normalised_bytecode(code)]
    except MemoryError:
        return NO_MEMORY
    except (SyntaxError, ValueError, OverflowError, RecursionError):
        return 1
    with open(output, "w", encoding="utf-8") as file:
        file.writelines(lines)
    return 0


def _written(constant: object) -> str:
    """A constant with its type, so that 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if isinstance(constant, CodeType):
        return f"code {constant.co_name!a}"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_written, constant))})"
    if isinstance(constant, frozenset):
        return f"{{{', '.join(sorted(map(_written, constant)))}}}"
    if isinstance(constant, int):
        return f"{type(constant).__name__} {constant:#x}"  # decimal digits have a limit
    return f"{type(constant).__name__} {constant!a}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
