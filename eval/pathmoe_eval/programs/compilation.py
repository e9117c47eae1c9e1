"""A program as text becomes normalised assembly or bytecode, or a reason why not; it is never run."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pathmoe_eval.programs import bytecode
from pathmoe_eval.programs.assembly import digest, normalised
from pathmoe_eval.programs.includes import all_allowed, assembly_reads_files, dependencies, has_forbidden_include
from pathmoe_eval.programs.sandbox import ConfinedRun, Limits, run_confined
from pathmoe_eval.programs.source_lines import source_lines

FAILURES = ("encoding", "source_size", "forbidden_include", "timeout", "memory", "output", "crash", "error")
"""Why a program has not compiled: NUL or no UTF-8; longer than it may be; a file that it may not read; a limit of time,
memory or size of files; a compiler that died; and what the language does not allow, or a file that is not there."""

_SUFFIX = {"c": ".c", "c++": ".cc", "python": ".py"}
_BYTECODE = Path(bytecode.__file__).resolve()
_SIGNS = (
    ("timeout", rb"CPU time limit exceeded"),
    ("memory", rb"out of memory allocating|virtual memory exhausted|bad_alloc|Cannot allocate memory|MemoryError"),
    ("output", rb"File size limit exceeded|File too large"),
    ("crash", rb"internal compiler error|signal terminated program|PLEASE submit a bug report"),
)
_OF_SIGNAL = {-signal.SIGXCPU: "timeout", -signal.SIGXFSZ: "output"}
_GCC_CRASH = 4


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A compiler that is installed here, and how it is called; see `open_compiler`.

    Args:
        name: as the user gave it.
        version: the first line in which it tells its own.
        include_folders: of its system, in the order in which it searches them.
        readable: what it must be able to open: itself, its libraries, the include folders.
    """

    name: str
    language: str
    level: str
    version: str
    executable: Path
    prompt_folder: Path | None
    include_folders: tuple[Path, ...]
    readable: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """What a compiler has made of a program.

    Args:
        failure: one of FAILURES, None where it compiled. What the compiler said is not kept, since it may quote files.
        lines: of normalised assembly or bytecode.
        source_lines: for each of these its line in the program, from 1; None where it has none.
    """

    failure: str | None = None
    lines: tuple[str, ...] = ()
    source_lines: tuple[int | None, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the lines."""
        return digest(self.lines)


def compile_program(source: str | bytes, compiler: Compiler, limits: Limits) -> Compilation:
    """Compile a program within limits, to assembly or bytecode; nothing is linked, nothing run.

    Whatever the program, this returns; the machine's own faults (no space for temporary files, a process that cannot
    be confined) are raised.

    Raises:
        OSError: such a fault.
    """
    text = _decoded(source)
    if text is None:
        return Compilation(failure="encoding")
    if len(text.encode()) > limits.source_bytes:
        return Compilation(failure="source_size")
    if compiler.language != "python" and has_forbidden_include(text, compiler.language, compiler.prompt_folder):
        return Compilation(failure="forbidden_include")
    with tempfile.TemporaryDirectory(prefix="pathmoe-") as name:
        folder = Path(name).resolve()
        file = folder / f"candidate{_SUFFIX[compiler.language]}"
        file.write_bytes(text.encode())
        os.utime(file, (0, 0))  # __TIMESTAMP__
        run = run_confined(_command(compiler, file.name), folder, _readable(compiler), limits)
        if run.returncode != 0 or run.timed_out:
            return Compilation(failure=_failure(run))
        return (_read_bytecode if compiler.language == "python" else _read_assembly)(compiler, folder, file.name)


def _decoded(source: str | bytes) -> str | None:
    try:
        text = source.decode() if isinstance(source, bytes) else source
        text.encode()
    except UnicodeError:
        return None
    return None if "\0" in text else text


def _command(compiler: Compiler, file_name: str) -> list[str]:
    executable = str(compiler.executable)
    if compiler.language == "python":
        return [executable, "-I", "-S", str(_BYTECODE), compiler.level[1], file_name, "out"]
    # Line tables are all of the debugging information; `normalised` drops them, and they change no instruction.
    options = ["-S", f"-{compiler.level}", "-g1", "-w", "-fno-verbose-asm", "-x", compiler.language]
    if "clang" in compiler.version:
        options += ["-fno-integrated-as"]  # which would read what inline assembly includes
    else:
        options += ["-frandom-seed=0", "-fmax-errors=1"]
    if compiler.prompt_folder is not None:
        options += ["-iquote", str(compiler.prompt_folder)]
    return [executable, *options, "-MD", "-MF", "dependencies", "-MT", "out", "-o", "out", file_name]


def _readable(compiler: Compiler) -> Sequence[Path]:
    own = [_BYTECODE] if compiler.language == "python" else []
    return [*compiler.readable, *own, *([compiler.prompt_folder] if compiler.prompt_folder else [])]


def _failure(run: ConfinedRun) -> str:
    if run.timed_out:
        return "timeout"
    if run.returncode == bytecode.NO_MEMORY:
        return "memory"
    if run.returncode in _OF_SIGNAL:
        return _OF_SIGNAL[run.returncode]
    for failure, sign in _SIGNS:
        if re.search(sign, run.said):
            return failure
    return "crash" if run.returncode < 0 or run.returncode == _GCC_CRASH else "error"


def _read_assembly(compiler: Compiler, folder: Path, file_name: str) -> Compilation:
    assembly = (folder / "out").read_bytes().decode(errors="surrogateescape")
    read = dependencies((folder / "dependencies").read_bytes().decode(errors="surrogateescape"))
    own = [folder, *([compiler.prompt_folder] if compiler.prompt_folder else [])]
    if not all_allowed(read, folder, compiler.include_folders, own) or assembly_reads_files(assembly):
        return Compilation(failure="forbidden_include")
    kept = normalised(assembly)
    line_of = source_lines(assembly, file_name)
    return Compilation(
        lines=tuple(line.text for line in kept), source_lines=tuple(line_of[line.place] for line in kept)
    )


def _read_bytecode(compiler: Compiler, folder: Path, file_name: str) -> Compilation:
    parts = [line.split("\t", 1) for line in (folder / "out").read_text(encoding="utf-8").splitlines()]
    return Compilation(
        lines=tuple(text for _, text in parts), source_lines=tuple(int(number) or None for number, _ in parts)
    )
