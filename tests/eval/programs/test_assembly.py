"""Normalised assembly: what of real compilations is dropped, and what is not."""

import shutil
import subprocess
import sys

import pytest

from pathmoe.data.c_functions import c_program
from pathmoe_eval.programs.assembly import digest, normalised

PROGRAMS = [c_program(5, index) for index in range(12)]
CLEANUP = """
#include <stdio.h>
#include <stdexcept>
struct Guard { ~Guard() { puts("gone"); } };
static int calls;
int risky(int x) { Guard g; static int times; if (x > ++times + calls) throw std::runtime_error("no"); return x; }
int careful(int x) { try { return risky(x); } catch (const std::exception &) { return 0; } }
"""


def compiled(source, *options, language="c"):
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    command = ["gcc", "-S", "-w", "-fno-verbose-asm", *options, "-x", language, "-", "-o", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def texts(assembly):
    return [line.text for line in normalised(assembly)]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2"])
def test_debugging_information_makes_no_difference(level):
    if "is_clang" in compiled("#ifdef __clang__\nint is_clang;\n#endif\n"):
        pytest.skip("a promise of the GNU compilers")
    for source in PROGRAMS:
        plain = texts(compiled(source, level))
        assert plain == texts(compiled(source, level, "-g1")) == texts(compiled(source, level, "-g"))
        assert len(plain) > 20
    assert texts(compiled(CLEANUP, level, language="c++")) == texts(compiled(CLEANUP, level, "-g1", language="c++"))


def test_comments_lines_and_local_names_make_no_difference():
    one = "int f(int a) { int total = 0; while (a) total += a--; return total; }"
    two = "// sums\n\nint f(int n)\n{\n  int s = 0; /* so far */\n  while (n)\n    s += n--;\n\n  return s;\n}\n"
    assert texts(compiled(one, "-O0")) == texts(compiled(two, "-O0"))


@pytest.mark.parametrize(
    "other",
    [
        "int f(int a) { int b = 0; while (a) b += --a; return b; }",
        "int f(int a) { int b = 1; while (a) b += a--; return b; }",
        "int g(int a) { int b = 0; while (a) b += a--; return b; }",
        "long f(int a) { long b = 0; while (a) b += a--; return b; }",
        "static int f(int a) { int b = 0; while (a) b += a--; return b; } int (*p)(int) = f;",
    ],
)
def test_other_programs_differ(other):
    assert texts(compiled("int f(int a) { int b = 0; while (a) b += a--; return b; }")) != texts(compiled(other))


def test_the_text_of_strings_is_kept():
    one, two = (compiled(f'char *f(void) {{ return "{text}"; }}') for text in ("a  b", "a b"))
    assert texts(one) != texts(two)


@pytest.mark.skipif(sys.platform == "darwin", reason="labels of Linux")
def test_by_hand():
    assembly = """
\t.file\t"candidate.c"
\t.text
.Ltext0:
\t.section\t.rodata
.LC3:
\t.string\t"a  # .L9 \\" b"
\t.text
\t.globl\tf
f:
.LFB7:
\t.loc 1 2 3
\t.cfi_startproc
\t.cfi_personality 0x3,g
\tleaq\t.LC3(%rip),   %rax
#APP
# 7 "candidate.c" 1
\tnop
#NO_APP
\tjmp\t.L12
.L12:
\tmovl $.LC3, %eax
\t.cfi_endproc
.LFE7:
\t.size\tf, .-f
\t.text
\t.data
\t.bss
\t.section\t.debug_info,"",@progbits
.Ldebug0:
\t.long\t.LFB7
\t.text
.Letext0:
\t.ident\t"GCC"
\t.section\t.note.GNU-stack,"",@progbits
"""
    kept = normalised(assembly)
    assert [line.text for line in kept] == [
        ".section .rodata", ".L0:", '.string "a  # .L9 \\" b"', ".text", ".globl f", "f:", ".cfi_personality 0x3,g",
        "leaq .L0(%rip), %rax", "nop", "jmp .L1", ".L1:", "movl $.L0, %eax", ".size f, .-f",
    ]  # fmt: skip
    lines = assembly.split("\n")
    assert [lines[line.place].split()[0] for line in kept] == [
        ".section", ".LC3:", ".string", ".text", ".globl", "f:", ".cfi_personality", "leaq", "nop", "jmp", ".L12:",
        "movl", ".size",
    ]  # fmt: skip


@pytest.mark.parametrize("hostile", ['\\"' * 500_000, ".L1 " * 200_000, '"' * 500_000, "\t" * 1_000_000])
def test_long_lines_take_no_longer_than_their_length(hostile):
    # Quadratic time would be hours.
    assert len(normalised(f"\t{hostile}\n\tret\n")) == 1 + bool(hostile.strip())


def test_digests_depend_on_lines():
    assert digest(["a", "b"]) == digest(["a", "b"])
    assert len({digest(["a", "b"]), digest(["ab"]), digest(["b", "a"]), digest([])}) == 4
    assert digest([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
