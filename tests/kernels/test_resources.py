"""The committed table of registers, stack and shared memory, and its corners compiled anew for three GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
TABLE = (KERNELS / "RESOURCES.md").read_text()
LINES = [line for line in TABLE.splitlines() if line.startswith("| ")]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES[2:]]
LIMITS = (163 * 1024, 227 * 1024, 227 * 1024)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool in a process of its own: nothing compiles where kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=KERNELS)


def numbers(cell: str) -> list[int]:
    return [int(number) for number in cell.split(" / ")]


def test_the_table_is_of_these_sources() -> None:
    script = "import sys; sys.path.insert(0, 'bench'); import resource_table; print(resource_table.sources_hash())"
    printed = run("-c", script)
    written = re.search(r"sources (\w+)\.", TABLE)
    assert written
    assert printed.stdout.strip() == written[1], f"run `make resources`\n{printed.stderr}"


def test_no_kernel_spills_and_all_fit_into_shared_memory() -> None:
    assert len(ROWS) > 100
    for row in ROWS:
        registers, stack, shared = (numbers(cell) for cell in row[-3:])
        assert stack == [0, 0, 0], row
        assert all(number <= 255 for number in registers), row
        assert all(taken <= limit for taken, limit in zip(shared, LIMITS, strict=True)), row


@pytest.mark.parametrize(("num_experts", "tokens"), [("16", 128), ("64", 128), ("128", 64), ("256", 32)])
def test_tiles_of_the_fused_gate_are_worth_running(num_experts: str, tokens: int) -> None:
    rows = [row for row in ROWS if row[0] in ("route forward", "route backward") and row[2] == num_experts]
    assert len(rows) == 2 * 5 * 2 * 2
    assert all(int(row[1]) >= tokens for row in rows)


@pytest.mark.parametrize(
    ("arguments", "interpret", "line"),
    [
        (["--chekc"], "", "error: unrecognized arguments: --chekc; see --help\n"),
        ([], "1", "error: TRITON_INTERPRET must not be set, or kernels are not compiled; unset it\n"),
    ],
)
def test_a_wrong_start_ends_in_one_line(arguments: list[str], interpret: str, line: str) -> None:
    command = [sys.executable, "bench/resources.py", *arguments]
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=KERNELS)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_corners_of_the_grid_compile_to_what_the_table_says() -> None:
    checked = run("bench/resources.py", "--check")
    assert checked.returncode == 0, checked.stderr
    assert "rows of RESOURCES.md hold, for 3 GPUs" in checked.stdout
