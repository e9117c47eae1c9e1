import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pathmoe.data.c_functions import c_functions, c_program
from pathmoe.data.c_sorts import SORTS

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
NUM_CHECKED = 150


@needs_gcc
def test_programs_compile_without_warnings(tmp_path: Path) -> None:
    files = []
    for index in range(NUM_CHECKED):
        files.append(tmp_path / f"{index}.c")
        files[-1].write_text(c_program(seed=1, index=index))
    flags = ["-std=c99", "-fsyntax-only", "-Wall", "-Wextra", "-pedantic"]
    result = subprocess.run(["gcc", *flags, *files], capture_output=True, text=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@needs_gcc
@pytest.mark.parametrize("title", SORTS)
def test_sort_functions_sort(title: str, tmp_path: Path) -> None:
    source, index = "", -1
    rng = random.Random(title)
    while title not in source or "int main(void)" not in source:
        index = rng.randrange(10**6)
        source = c_program(seed=2, index=index)
    (tmp_path / "sort.c").write_text(source)
    program = tmp_path / "sort"
    subprocess.run(["gcc", "-std=c99", "-o", program, tmp_path / "sort.c"], check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    match = re.search(r"\[\] = \{(.*)\};", source)
    assert match is not None
    values = sorted(int(value) for value in match[1].split(","))
    assert [int(value) for value in printed.split()] in (values, values[::-1])


def test_a_program_is_a_function_of_seed_and_index() -> None:
    corpus = [document.text for document in c_functions(seed=3, num_documents=20)]
    assert corpus[:7] == [document.text for document in c_functions(seed=3, num_documents=7)]
    assert corpus == [c_program(3, index) for index in range(20)]
    assert corpus != [c_program(4, index) for index in range(20)]


def test_sort_functions_are_frequent_and_varied() -> None:
    corpus = [c_program(5, index) for index in range(2000)]
    order = re.compile(r"\[([^\]]+)\] [<>] \w+\[|sort", re.IGNORECASE)
    assert sum(bool(order.search(program)) for program in corpus) > 800
    assert len(set(corpus)) > 1700
    for mark in ("\t", "{\n", ")\n{", "//", "/*", "#define SWAP", "static void swap", "ascending", "descending"):
        assert any(mark in program for program in corpus), mark
    assert not any("$" in program or "//~" in program for program in corpus)
