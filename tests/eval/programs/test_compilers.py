"""Finding compilers, and saying why not."""

import subprocess
import sys
from pathlib import Path

import pytest

from pathmoe_eval.programs.compilation import compile_program
from pathmoe_eval.programs.compilers import LEVELS, open_compiler
from pathmoe_eval.programs.sandbox import Limits


def test_a_compiler_says_its_version_and_where_its_headers_are(c_compiler):
    said = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    assert c_compiler.version == said.splitlines()[0]
    assert any((folder / "stdio.h").exists() for folder in c_compiler.include_folders)
    assert any((folder / "stdarg.h").exists() for folder in c_compiler.include_folders)


def test_a_path_names_a_compiler_too(c_compiler):
    again = open_compiler(str(c_compiler.executable), "c")
    assert again.version == c_compiler.version


def test_headers_of_the_system_can_be_included(c_compiler, cpp_compiler):
    headers = "#include <math.h>\n#include <stdarg.h>\n#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>\n"
    assert compile_program(headers, c_compiler, Limits()).failure is None
    source = (
        headers
        + "#include <algorithm>\n#include <vector>\nvoid f(std::vector<int> &v) { std::sort(v.begin(), v.end()); }\n"
    )
    assert compile_program(source, cpp_compiler, Limits()).failure is None


def test_levels_are_passed_on(c_compiler):
    source = "int f(int x) { int y = x; return y + y; }\nint g(int x) { return x ? g(x - 1) : 0; }\n"
    lines = [compile_program(source, open_compiler("gcc", "c", level), Limits()).lines for level in LEVELS]
    assert len(set(lines)) == 3
    assert len(lines[0]) > len(lines[1])


def test_the_interpreter_of_an_environment_is_the_one_beneath_it(python_compiler):
    assert python_compiler.version == f"Python {sys.version.split()[0]}"
    assert python_compiler.executable.resolve() == python_compiler.executable


def test_folders_that_the_environment_names_are_not_searched(monkeypatch, tmp_path, c_compiler):
    monkeypatch.setenv("CPATH", str(tmp_path))
    assert open_compiler("gcc", "c").include_folders == c_compiler.include_folders


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-such-compiler", "c"), r"--compiler \(no-such-compiler\) must be a compiler that is installed; .*"),
        (("ls", "c"), r"--compiler \(ls\) must be a compiler of c that works here, but it .*; name another"),
        (("ls", "python"), r"--compiler \(ls\) must be a compiler of python that works here, but it .*; name another"),
        (("gcc", "fortran"), r"language \(fortran\) must be one of c, c\+\+, python; choose one"),
        (("gcc", "c", "O3"), r"level \(O3\) must be one of O0, O1, O2; choose one"),
        (("gcc", "c", "O0", Path("/no/folder")), r"prompt_folder \(/no/folder\) must be a folder that is there; .*"),
    ],
)
def test_errors(arguments, said, c_compiler):
    with pytest.raises(ValueError, match=rf"^{said}$"):
        open_compiler(*arguments)
