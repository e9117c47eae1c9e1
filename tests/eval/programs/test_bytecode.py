"""Normalised bytecode: what makes no difference to it, and what does."""

import dis
import subprocess
import sys

import pytest

from pathmoe.data.python_stdlib import python_stdlib
from pathmoe_eval.programs import bytecode
from pathmoe_eval.programs.bytecode import normalised_bytecode

PROGRAM = """
def mean(values, *, start=0):
    total = start
    for value in values:
        total += value
    return total / len(values) if values else None
"""


def texts(source):
    return [text for _, text in normalised_bytecode(compile(source, "a.py", "exec", dont_inherit=True))]


@pytest.mark.parametrize(
    "same",
    [
        PROGRAM.replace("total", "summed").replace("value ", "each ").replace("value\n", "each\n"),
        PROGRAM.replace("    total = start", "    # so far\n\n\n    total = start  # nothing"),
        PROGRAM.replace("    ", "  "),
        PROGRAM.replace("total / len(values)", "(total) / (len(values))"),
        PROGRAM + "\n# the end\n",
    ],
)
def test_layout_comments_and_local_names_make_no_difference(same):
    assert same != PROGRAM
    assert texts(same) == texts(PROGRAM)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("start=0", "start=1"),
        ("start=0", "start=0.0"),
        ("start=0", "start=False"),
        ("mean", "average"),
        ("total += value", "total -= value"),
        ("*, start", "start"),
        ("values, *, start=0", "numbers, *, start=0"),
        ("else None", "else 0"),
        ("    total = start", "    'says what it does'\n    total = start"),
    ],
)
def test_other_programs_differ(old, new):
    assert old in PROGRAM
    assert texts(PROGRAM.replace(old, new)) != texts(PROGRAM)


def test_signs_of_zero_and_types_in_tuples_differ():
    values = ["0.0", "-0.0", "0", "0j", "(0,)", "(0.0,)", "(-0.0,)", "'0'", "b'0'", "False", "None", "..."]
    assert len({"\n".join(texts(f"x = {value}")) for value in values}) == len(values)


def test_long_numbers_have_no_limit():
    assert texts(f"x = 1{'0' * 9}") != texts(f"x = 0x{'f' * 5000}")


def test_lines_of_the_source():
    code = compile("x = 1\n\n\ndef f():\n    y = 2\n    return y\n", "a.py", "exec")
    lines = {(line, text.split()[0]) for line, text in normalised_bytecode(code) if line}
    assert {line for line, _ in lines} <= {1, 4, 5, 6}
    assert {(1, "STORE_NAME"), (4, "MAKE_FUNCTION"), (5, "STORE_FAST")} <= lines


def test_instructions_are_those_of_the_library():
    source = next(document.text for document in python_stdlib() if "async def" in document.text)
    code = compile(source, "a.py", "exec")
    theirs = [one.opname for one in dis.get_instructions(code, adaptive=False)]
    ours = []
    for text in texts(source)[7:]:
        if text.startswith("code "):
            break
        ours.append(text.split()[0])
    assert ours == theirs


def test_the_order_of_sets_does_not_depend_on_the_process(tmp_path):
    source = tmp_path / "a.py"
    source.write_text("def f(x):\n    return x in {'a', 'b', 'c', 'd', ('e', 1)}\n")
    written = set()
    for seed in range(4):
        out = tmp_path / f"out{seed}"
        command = [sys.executable, bytecode.__file__, "0", str(source), str(out)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": str(seed)})
        written.add(out.read_text())
    assert len(written) == 1


@pytest.mark.parametrize(("source", "status"), [("x = 1", 0), ("x = (", 1), ("return", 1), ("x = " + "(" * 300, 1)])
def test_the_status_says_whether_it_compiled(tmp_path, source, status):
    (tmp_path / "a.py").write_text(source)
    assert bytecode.main(["0", str(tmp_path / "a.py"), str(tmp_path / "out")]) == status
    assert (tmp_path / "out").exists() == (status == 0)


def test_levels_are_those_of_the_compiler(tmp_path):
    source = tmp_path / "a.py"
    source.write_text("def f(x):\n    'says'\n    assert x, 'asserted'\n")
    found = []
    for level in "012":
        bytecode.main([level, str(source), str(tmp_path / "out")])
        written = (tmp_path / "out").read_text()
        found.append(("says" in written, "asserted" in written))
    assert found == [(True, True), (True, False), (False, False)]
