"""Which files are mutated, and the tests that each mutant of them has to get past."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kernels" / "pathmoe_kernels"
TESTS = "tests/kernels"

FORWARD = "not formula and not programs or [7- or [1- or -16- or [masked-5]"
SHORT_SETS: dict[str, tuple[str, ...]] = {
    "metadata_triton": ("test_metadata_triton.py", "-k", "not bare_sort or [513-3] or [0-3] or [1-3]"),
    "route_forward_triton": ("test_route_forward_triton.py", "-k", FORWARD),
    "route_tiles": ("test_route_backward_triton.py", "test_route_forward_triton.py", "-k", FORWARD),
}
"""Arguments of pytest by file, where `test_<file>.py` as a whole is not it: the cheapest first."""


def _holds_kernels(path: Path) -> bool:
    decorated = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    return any(ast.unparse(decorator) == "triton.jit" for node in decorated for decorator in node.decorator_list)


def kernel_files() -> dict[str, Path]:
    """By name: every file that holds Triton kernels or launches them."""
    paths = sorted(PACKAGE.glob("*.py"))
    return {path.stem: path for path in paths if path.stem.endswith("_triton") or _holds_kernels(path)}


def short_set(name: str) -> list[str]:
    """Arguments of pytest for the mutants of a file.

    Raises:
        ValueError: there are no such tests.
    """
    arguments = SHORT_SETS.get(name, (f"test_{name}.py",))
    paths = [argument for argument in arguments if argument.endswith(".py")]
    if missing := [path for path in paths if not (ROOT / TESTS / path).exists()]:
        raise ValueError(f"{TESTS}/{missing[0]} does not exist: write it, or name others in SHORT_SETS for {name}")
    return [f"{TESTS}/{argument}" if argument in paths else argument for argument in arguments]
