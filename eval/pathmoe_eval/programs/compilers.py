"""Compilers that are installed here: where they are, which version, and what they must be able to read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pathmoe_eval.programs.compilation import Compiler, compile_program
from pathmoe_eval.programs.lexemes import LANGUAGES
from pathmoe_eval.programs.sandbox import Limits

LEVELS = ("O0", "O1", "O2")
"""Levels of optimisation; of Python those of `compile`: 1 drops assertions, 2 documentation strings too."""

_PROGRAM = {"c": "int x;\n", "c++": "int x;\n", "python": "x = 1\n"}
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/bin", "/usr/bin", "/etc/ld.so.cache")  # what programs load
_QUERY_SECONDS = 60
_ABOUT_PYTHON = """
import json, os, sys
executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
libraries = [os.path.join(sys.base_prefix, name) for name in ("lib", "lib64")]
print(json.dumps([executable, "Python " + sys.version.split()[0], [*libraries, *sys.path], list(sys.version_info[:2])]))
"""


def open_compiler(name: str, language: str, level: str = "O0", prompt_folder: Path | None = None) -> Compiler:
    """Find a compiler, ask it for its version and folders, and let it compile a line as programs will be.

    Args:
        name: a command or a path: of a gcc or clang for C and C++, of a Python from 3.10 on for Python.
        language: one of LANGUAGES.
        level: one of LEVELS.
        prompt_folder: programs may include its files by `#include "name"`.

    Raises:
        ValueError: no such language, level, compiler or folder, or the compiler does not work here.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language ({language}) must be one of {', '.join(LANGUAGES)}; choose one")
    if level not in LEVELS:
        raise ValueError(f"level ({level}) must be one of {', '.join(LEVELS)}; choose one")
    found = shutil.which(name)
    if found is None:
        raise ValueError(f"--compiler ({name}) must be a compiler that is installed; install it or name another")
    try:
        about = _about_python if language == "python" else _about_c_compiler
        executable, version, include_folders, needed = about(os.path.abspath(found), language)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise _not_a_compiler(name, language, "does not say which it is, or is too old") from error
    if prompt_folder is not None and not prompt_folder.is_dir():
        raise ValueError(f"prompt_folder ({prompt_folder}) must be a folder that is there; name another")
    prompt = None if prompt_folder is None else Path(os.path.realpath(prompt_folder))
    wanted = [executable, os.path.realpath(executable), *_SYSTEM, *needed, *include_folders]
    compiler = Compiler(
        name=name,
        language=language,
        level=level,
        version=version,
        executable=Path(executable),
        prompt_folder=prompt,
        include_folders=tuple(map(Path, include_folders)),
        readable=tuple(dict.fromkeys(Path(path) for path in wanted if os.path.exists(path))),
    )
    if failure := compile_program(_PROGRAM[language], compiler, Limits()).failure:
        raise _not_a_compiler(name, language, f"ends a line of it with {failure}")
    return compiler


def _about_c_compiler(executable: str, language: str) -> tuple[str, str, list[str], list[str]]:
    """Executable, version, include folders, and what else it needs to read."""
    version = _answer([executable, "--version"]).splitlines()[0]
    searched = _answer([executable, "-E", "-v", "-x", language, os.devnull])
    _, _, listed = searched.partition("search starts here:")
    lines = [line.strip() for line in listed.partition("End of search list")[0].splitlines()]
    include_folders = [line.removesuffix(" (framework directory)") for line in lines if line.startswith("/")]
    if not include_folders:
        raise ValueError(searched[-200:])
    named = re.findall(r"^(?:install|programs|libraries): =?(.*)$", _answer([executable, "-print-search-dirs"]), re.M)
    return executable, version, include_folders, [path for paths in named for path in paths.split(":") if path != "/"]


def _about_python(executable: str, language: str) -> tuple[str, str, list[str], list[str]]:
    real, version, libraries, numbers = json.loads(_answer([executable, "-I", "-S", "-c", _ABOUT_PYTHON]))
    if numbers < [3, 10]:
        raise ValueError(version)
    return real, version, [], libraries


def _answer(command: Sequence[str]) -> str:
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=_QUERY_SECONDS,
        stdin=subprocess.DEVNULL,
        # Not CPATH and its like, which programs are compiled without.
        env={name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ} | {"LC_ALL": "C"},
    )
    return run.stdout + run.stderr


def _not_a_compiler(name: str, language: str, why: str) -> ValueError:
    return ValueError(
        f"--compiler ({name}) must be a compiler of {language} that works here, but it {why}; name another"
    )
