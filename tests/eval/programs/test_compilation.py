"""Compilations by the real compilers: programs as models write them, and programs that mean harm."""

import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from pathmoe.data.c_functions import c_program
from pathmoe_eval.programs import sandbox
from pathmoe_eval.programs.compilation import FAILURES, Compilation, compile_program
from pathmoe_eval.programs.compilers import open_compiler
from pathmoe_eval.programs.sandbox import Confinement, Limits, confinement

LIMITS = Limits(wall_seconds=20, cpu_seconds=2, memory_bytes=1 << 29)
DOUBLINGS = "\n".join(f"#define A{i + 1} A{i} A{i}" for i in range(40))

HOSTILE_C = {
    "device": ('#include "/dev/zero"\n', {"forbidden_include"}),
    "file": ('#include "/etc/passwd"\n', {"forbidden_include"}),
    "computed": ('#define F "/etc/passwd"\n#include F\n', {"forbidden_include"}),
    "asked for": ('#if __has_include("/etc/passwd")\nint x;\n#endif\n', {"forbidden_include"}),
    "incbin": ('asm(".incbin \\"/etc/passwd\\"");\n', {"forbidden_include"}),
    "macro bomb": (f"#define A0 1+\n{DOUBLINGS}\nint x = A40 1;\n", {"memory", "timeout", "crash"}),
    "much output": (
        f'#define A0 "0123456789"\n{DOUBLINGS}\nchar *s = A20;\n',
        {"output", "memory", "timeout", "error"},
    ),
    "long literal": ('char *s = "' + "a" * 100_000_000 + '";\n', {"source_size"}),
    "parentheses": ("int x = " + "(" * 100_000 + "1" + ")" * 100_000 + ";\n", {"crash", "error", "memory"}),
    "blocks": ("void f(void) {" + "{" * 100_000 + "}" * 100_000 + "}\n", {"timeout", "crash", "error", "memory"}),
    "itself": ('#include "candidate.c"\n#include "candidate.c"\n', {"error", "timeout"}),
    "long array": ("char x[] = {[0 ... 1UL << 40] = 1};\n", {"timeout", "memory", "output", "error"}),
    "NUL": ("int x;\0\n", {"encoding"}),
    "no UTF-8": (b"int x; // \xff\n", {"encoding"}),
    "lone surrogate": ("int x; // \ud800\n", {"encoding"}),
    "text of a file as a line": ('# 1 "/etc/passwd"\nint f( {\n', {"error"}),
}
HOSTILE_CPP = {
    "templates": (
        "template <int N> struct S { static constexpr int v = S<N + 1>::v + S<N + 2>::v; }; int x = S<0>::v;\n",
        {"error", "timeout", "memory", "crash"},
    ),
    "many templates": (
        "template <int N, long K> struct S { static constexpr int v = S<N - 1, 2 * K>::v + S<N - 1, 2 * K + 1>::v; };\n"
        "template <long K> struct S<0, K> { static constexpr int v = 1; }; int x = S<60, 0>::v;\n",
        {"timeout", "memory", "crash"},
    ),
    "endless constexpr": (
        "constexpr int f(int n) { while (true) n ^= 1; return n; } constexpr int x = f(1);\n",
        {"error", "timeout"},
    ),
    "raw string": ('auto s = R"(\n)"; \n#include "/dev/zero"\n', {"forbidden_include"}),
}
HOSTILE_PYTHON = {
    "parentheses": ("x = " + "(" * 100_000 + ")" * 100_000, {"error", "memory", "crash"}),
    "signs": ("x = " + "-" * 100_000 + "1", {"error", "memory", "crash"}),
    "attributes": ("x" + ".a" * 100_000, {"error", "memory", "crash"}),
    "sums": ("x = " + "1 + " * 50_000 + "1", {"error", "memory", "crash"}),
    "NUL": ("x = 1\0", {"encoding"}),
    "long literal": ("x = '" + "a" * 100_000_000 + "'", {"source_size"}),
}


def timed(source, compiler, limits=LIMITS):
    started = time.monotonic()
    compilation = compile_program(source, compiler, limits)
    # Beside the limit of the wall clock, time for reading what came out and for a machine that is busy.
    assert time.monotonic() - started < limits.wall_seconds + 30
    return compilation


@pytest.mark.parametrize("name", HOSTILE_C)
def test_hostile_c_is_a_failed_compilation(name, c_compiler):
    source, reasons = HOSTILE_C[name]
    compilation = timed(source, c_compiler)
    assert compilation.failure in reasons
    assert (compilation.lines, compilation.source_lines) == ((), ())


@pytest.mark.parametrize("name", HOSTILE_CPP)
def test_hostile_cpp_is_a_failed_compilation(name, cpp_compiler):
    source, reasons = HOSTILE_CPP[name]
    assert timed(source, cpp_compiler).failure in reasons


@pytest.mark.parametrize("name", HOSTILE_PYTHON)
def test_hostile_python_is_a_failed_compilation(name, python_compiler):
    source, reasons = HOSTILE_PYTHON[name]
    assert timed(source, python_compiler).failure in reasons


@pytest.mark.parametrize("source", ["x = 'a' * 10 ** 10", "x = 2 ** 10 ** 9", "x = (1,) * 10 ** 9", "x = 1 << 10 ** 9"])
def test_constants_are_not_folded_without_bounds(source, python_compiler):
    assert len("".join(timed(source, python_compiler).lines)) < 10_000


def test_an_array_that_no_memory_holds_costs_nothing(c_compiler):
    # It is a line of assembly, and nothing is linked or run.
    compilation = timed("char x[1UL << 40] = {1};\n", c_compiler)
    assert compilation.failure is None
    assert len(compilation.lines) < 20


def test_all_reasons_are_documented():
    reasons = set().union(*(found for group in (HOSTILE_C, HOSTILE_CPP, HOSTILE_PYTHON) for _, found in group.values()))
    assert reasons == set(FAILURES)


@pytest.fixture
def prompt_folder(tmp_path):
    folder = tmp_path / "prompt"
    folder.mkdir()
    (tmp_path / "secret.h").write_text('char *secret = "swordfish";\n')
    (folder / "own.h").write_text("#define ANSWER 42\n")
    (folder / "outer.h").symlink_to("../secret.h")
    (folder / "through.h").write_text('#include "outer.h"\n')
    (folder / "above.h").write_text('#include "../secret.h"\n')
    (folder / "waits.h").write_text('#include "pipe.h"\n')
    os.mkfifo(folder / "pipe.h")
    return folder


@pytest.fixture
def with_prompt(c_compiler, prompt_folder):
    return open_compiler(c_compiler.name, "c", prompt_folder=prompt_folder)


def test_headers_beside_the_prompt_can_be_included(with_prompt, c_compiler):
    source = '#include "own.h"\nint f(void) { return ANSWER; }\n'
    with_header = timed(source, with_prompt)
    assert with_header.failure is None
    assert with_header.lines == timed("int f(void) { return 42; }\n", c_compiler).lines
    assert timed(source, c_compiler).failure == "error"


@pytest.mark.parametrize("header", ["outer.h", "pipe.h"])
def test_links_and_pipes_beside_the_prompt_are_refused(header, with_prompt):
    assert timed(f'#include "{header}"\n', with_prompt).failure == "forbidden_include"


@pytest.fixture
def only_checks(monkeypatch):
    """As where the kernel confines nothing."""
    bare = Confinement(files="checks", network="not confined", limits=confinement().limits)
    monkeypatch.setattr(sandbox, "confinement", lambda: bare)


@pytest.mark.parametrize("header", ["through.h", "above.h"])
def test_without_the_kernel_too_what_headers_lead_to_is_refused(header, with_prompt, only_checks):
    assert timed(f'#include "{header}"\n', with_prompt).failure == "forbidden_include"
    assert timed('#include "own.h"\nint x = ANSWER;\n', with_prompt).failure is None


@pytest.mark.parametrize("name", ["device", "file", "computed", "asked for", "incbin", "itself", "blocks"])
def test_without_the_kernel_too_hostile_c_fails(name, c_compiler, only_checks):
    source, reasons = HOSTILE_C[name]
    assert timed(source, c_compiler).failure in reasons


@pytest.mark.parametrize("header", ["through.h", "above.h"])
def test_what_headers_lead_to_is_refused(header, with_prompt):
    compilation = timed(f'#include "{header}"\n', with_prompt)
    assert compilation.failure in ({"error"} if confinement().files == "landlock" else {"forbidden_include"})
    assert "swordfish" not in str(asdict(compilation))


def test_a_pipe_that_a_header_opens_is_waited_for_and_no_longer(with_prompt):
    assert timed('#include "waits.h"\n', with_prompt, replace(LIMITS, wall_seconds=1.5)).failure == "timeout"


def test_no_text_of_another_file_is_kept(c_compiler):
    for source in (HOSTILE_C["file"][0], HOSTILE_C["text of a file as a line"][0]):
        compilation = timed(source, c_compiler)
        assert set(asdict(compilation)) == {"failure", "lines", "source_lines"}
        assert compilation.failure is not None
        assert compilation == Compilation(failure=compilation.failure)


def test_nothing_stays_in_the_folder_for_temporary_files(tmp_path, monkeypatch, c_compiler):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for source in ("int x;\n", "int x\n", HOSTILE_C["itself"][0]):
        timed(source, c_compiler)
    assert list(tmp_path.iterdir()) == []


def test_time_and_place_of_a_compilation_are_not_in_it(c_compiler):
    source = "char *f(void) { return __DATE__ __TIME__ __TIMESTAMP__ __FILE__; }\n"
    one = timed(source, c_compiler)
    time.sleep(1.1)
    assert timed(source, c_compiler) == one
    assert "1970" in str(one.lines)


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_programs_as_they_are_written(level, c_compiler):
    compiler = open_compiler(c_compiler.name, "c", level)
    for index in range(6):
        source = c_program(7, index)
        compilation = timed(source, compiler)
        assert compilation.failure is None
        assert len(compilation.lines) == len(compilation.source_lines) > 20
        lines = {line for line in compilation.source_lines if line is not None}
        assert lines <= set(range(1, source.count("\n") + 2)) and len(lines) > 3
        assert timed(source.encode(), compiler).digest == compilation.digest


def test_no_program_is_run(tmp_path, python_compiler, c_compiler):
    mark = tmp_path / "mark"
    timed(f"open({str(mark)!r}, 'w')\n", python_compiler)
    constructor = f'__attribute__((constructor)) void f(void) {{ fopen("{mark}", "w"); }}\n'
    assert timed(f"#include <stdio.h>\n{constructor}", c_compiler).failure is None
    assert not mark.exists()


def test_python_as_the_interpreter_here_compiles_it(python_compiler):
    compilation = timed("def f(x):\n    return x + 1\n", python_compiler)
    script = "import dis; dis.dis(compile('def f(x):\\n    return x + 1\\n', 'a', 'exec').co_consts[0])"
    listed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    inner = compilation.lines[compilation.lines.index("code 'f'") :]
    names = [line.split()[0] for line in inner[7:]]
    assert [word for word in listed.split() if word in names] == names
    assert compilation.source_lines[-1] == 2
