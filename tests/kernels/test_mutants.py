"""Bugs planted in the kernels: the operators on small sources, the committed report, and a few mutants run anew."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
REPORT = (KERNELS / "MUTANTS.md").read_text()
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="kernels are interpreted by Triton")


@pytest.fixture(scope="module")
def tool() -> Iterator[dict[str, ModuleType]]:
    """Its modules by name: a folder of scripts, which is no package."""
    sys.path.insert(0, str(KERNELS / "bench"))
    names = ["equivalents", "mutant_report", "mutation", "short_sets"]
    yield {name: import_module(name) for name in names}
    sys.path.remove(str(KERNELS / "bench"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=KERNELS)


def edits(tool: dict[str, ModuleType], statement: str) -> set[tuple[str, str, str]]:
    """Operator, and what is there before and after, of a function with one statement."""
    made = tool["mutation"].mutants(f"def f(a, b, c):\n    {statement}\n")
    return {(mutant.operator, mutant.before, mutant.after) for mutant in made}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("return a < b", {("bound", "a < b", "a <= b")}),
        ("return a >= b", {("bound", "a >= b", "a > b")}),
        ("return a != b", {("bound", "a != b", "a == b")}),
        ("return a is None", {("bound", "a is None", "a is not None")}),
        ("return range(a)", {("bound", "range(a)", "range(a - 1)")}),
        ("return range(a, b, c)", {("bound", "range(a, b, c)", "range(a, b - 1, c)")}),
        ("return tl.cdiv(a, b)", {("bound", "tl.cdiv(a, b)", "a // b")}),
        ("return tl.arange(0, a)", {("constant", "tl.arange(0, a)", "tl.arange(0, a) + 1")}),
        ("return f(a, 0.0)", {("constant", "f(a, 0.0)", "f(a, 1.0)")}),
        ("return a / b", {("arithmetic", "a / b", "a * b")}),
        ("return a % b", {("arithmetic", "a % b", "a // b")}),
        ("return a - 1", {("arithmetic", "a - 1", "a + 1"), ("constant", "a - 1", "a - 2"), ("term", "a - 1", "a")}),
        ("return -a", {("term", "-a", "a")}),
        ("return tl.load(a, b, c)", {("mask", "tl.load(a, b, c)", "tl.load(a)")}),
        ("return a & b", {("mask", "a & b", "a"), ("mask", "a & b", "b")}),
        ("return tl.sum(a, axis=0)", {("axis", "tl.sum(a, axis=0)", "tl.sum(a, axis=1)")}),
        ("return tl.program_id(1)", {("axis", "tl.program_id(1)", "tl.program_id(0)")}),
        ("return a.shape[1]", {("index", "a.shape[1]", "a.shape[0]")}),
        (
            "return a * b + c",
            {
                ("index", "a * b + c", "c * b + a"),
                ("arithmetic", "a * b + c", "a * b - c"),
                ("arithmetic", "a * b", "a + b"),
            },
        ),
        ("return tl.where(a, b, c)", {("branch", "tl.where(a, b, c)", "tl.where(a, c, b)")}),
        ("return b if a else c", {("branch", "b if a else c", "c if a else b")}),
        ("return tl.max(a)", {("branch", "tl.max(a)", "tl.min(a)")}),
        ("a += b", {("arithmetic", "a += b", "a -= b"), ("statement", "a += b", "pass")}),
        ("a = b", {("statement", "a = b", "pass")}),
        ("d = b", set()),  # what follows would not run
        ("tl.store(a, b)", {("statement", "tl.store(a, b)", "pass")}),
        ("if a: return b", {("branch", "if a:", "if not a:")}),
        ("return a[:, None], True, 'text', tl.int32", set()),
    ],
)
def test_what_an_operator_makes_of_a_statement(
    tool: dict[str, ModuleType], statement: str, expected: set[tuple[str, str, str]]
) -> None:
    assert edits(tool, statement) == expected


def test_nothing_but_the_code_of_functions_is_edited(tool: dict[str, ModuleType]) -> None:
    source = '''"""Doc - 1."""
ROWS = 1 + 1

@jit(1)
def f(a: Literal[1], b: int = 1) -> Literal[2]:
    """Doc - 1."""
    c: Literal[3] = a  # 1 + 1
    def g(d: int = 5): ...
    return c
'''
    assert tool["mutation"].mutants(source) == []


def test_names_outlive_edits_elsewhere(tool: dict[str, ModuleType]) -> None:
    source = "def f(a):\n    b = a - 1\n    return b < a\n"
    other = "C = 2\ndef e(a): return a + 1\ndef f(a):\n    # why\n    a = e(a)\n\n    b = a - 1\n    return b < a\n"
    names, others = ([mutant.name for mutant in tool["mutation"].mutants(text)] for text in (source, other))
    assert names == ["f: a - 1 => a + 1", "f: a - 1 => a", "f: a - 1 => a - 2", "f: b < a => b <= a"]
    assert [name for name in others if name in names] == names


def test_edits_that_read_alike_are_numbered(tool: dict[str, ModuleType]) -> None:
    made = tool["mutation"].mutants("def f(a, b):\n    return (a < b, a < b)\n")
    assert [mutant.name for mutant in made] == ["f: a < b => a <= b", "f: a < b => a <= b (2)"]
    assert [mutant.source.splitlines()[1] for mutant in made] == [
        "    return (a <= b, a < b)",
        "    return (a < b, a <= b)",
    ]


def test_each_mutant_of_the_kernels_is_another_program(tool: dict[str, ModuleType]) -> None:
    files = tool["short_sets"].kernel_files()
    assert {"route_forward_triton", "route_tiles", "rows_triton"} <= files.keys()
    assert not {"route", "route_reference", "launch"} & files.keys()
    for file, path in files.items():
        made = tool["mutation"].mutants(path.read_text())
        plain = ast.unparse(ast.parse(path.read_text()))
        programs = {ast.unparse(ast.parse(mutant.source)) for mutant in made}
        assert len(programs) == len(made) == len({mutant.name for mutant in made})
        assert plain not in programs
        # Each kernel is edited in several places.
        functions = [node.name for node in ast.parse(plain).body if isinstance(node, ast.FunctionDef)]
        assert {mutant.function for mutant in made} == set(functions), file
        assert all(sum(m.function == name for m in made) >= 8 for name in functions if name.endswith("_kernel")), file
        # Those said to be equivalent are among them.
        assert tool["equivalents"].EQUIVALENT.get(file, {}).keys() <= {mutant.name for mutant in made}


def test_the_report_is_of_these_sources_and_nearly_all_mutants_die(tool: dict[str, ModuleType]) -> None:
    report = tool["mutant_report"]
    sections = report.kept_sections()
    assert sections.keys() == tool["short_sets"].kernel_files().keys()
    for file, section in sections.items():
        assert section.sources == report.sources_hash(file), f"run `python kernels/bench/mutants.py {file}`"
        assert section.counts["equivalent"] == len(tool["equivalents"].EQUIVALENT.get(file, {}))
        assert section.share() >= 0.95
    assert report.document(list(sections.values())) == REPORT


def test_a_report_that_was_edited_is_named(
    tool: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool["mutant_report"], "REPORT", tmp_path / "MUTANTS.md")
    assert tool["mutant_report"].kept_sections() == {}
    (tmp_path / "MUTANTS.md").write_text("# Mutants\n\n## rows_triton\n\n<<<<<<< ours\n")
    with pytest.raises(
        ValueError, match=r"MUTANTS\.md is not as it was written \(## rows_triton\); delete it, or mend"
    ):
        tool["mutant_report"].kept_sections()


def test_a_file_without_tests_is_named(tool: dict[str, ModuleType]) -> None:
    with pytest.raises(ValueError, match=r"tests/kernels/test_new_triton\.py does not exist: write it, or name others"):
        tool["short_sets"].short_set("new_triton")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--chekc"], r"error: unrecognized arguments: --chekc; see --help\n"),
        (["rows"], r"error: FILE \(rows\) must be one of expert_mlp_triton, .*; see --help\n"),
    ],
)
def test_a_wrong_start_ends_in_one_line(arguments: list[str], line: str) -> None:
    ended = run("bench/mutants.py", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(line, ended.stderr)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_triton
def test_a_sample_of_the_mutants_dies_and_the_kernels_pass(tool: dict[str, ModuleType]) -> None:
    checked = run("bench/mutants.py", "--check")
    assert checked.returncode == 0, checked.stderr
    num_files = len(tool["short_sets"].kernel_files())
    assert checked.stdout.splitlines() == [f"the tests of {num_files} files pass", f"{2 * num_files} mutants die"]


@pytest.mark.slow
@needs_triton
def test_each_way_to_end_is_told_from_the_others(tmp_path: Path) -> None:
    script = """
import sys; sys.path.insert(0, "bench")
import mutant_runs
from short_sets import kernel_files, short_set
tests = short_set("swiglu_triton")
source = kernel_files()["swiglu_triton"].read_text()
wrong = source.replace("gate * sigmoid(gate) * up", "gate * sigmoid(gate) + up")
sources = [source, wrong, source + "raise OSError", "import os; os.kill(os.getpid(), 11)"]
def fates(sources):
    return mutant_runs.run([mutant_runs.Job("swiglu_triton", one, tests) for one in sources])
if __name__ == "__main__":
    print(*fates(sources), sep="\\n")
    mutant_runs.LIMIT_S = 10
    print(*fates(["while True: pass"]), sep="\\n")
"""
    # A file, as child processes read it again.
    (tmp_path / "script.py").write_text(script)
    ended = run(str(tmp_path / "script.py"))
    assert ended.stdout.splitlines() == ["survived", "wrong result", "raised", "crashed", "timed out"], ended.stderr
    assert not os.path.exists("core")
