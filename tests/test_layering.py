"""The order of the house: who may import whom, how long a file may be, what it may be called, where its test lies."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = {
    "pathmoe_kernels": ROOT / "kernels" / "pathmoe_kernels",
    "pathmoe": ROOT / "pathmoe",
    "pathmoe_eval": ROOT / "eval" / "pathmoe_eval",
}
MAY_IMPORT = {
    "pathmoe_kernels": {"pathmoe_kernels"},
    "pathmoe": {"pathmoe_kernels", "pathmoe"},
    "pathmoe_eval": {"pathmoe_kernels", "pathmoe", "pathmoe_eval"},
}
TEST_FOLDERS = {
    "pathmoe_kernels": ["tests/kernels"],
    "pathmoe": ["tests", "tests/pathmoe"],
    "pathmoe_eval": ["tests/eval"],
}

MAX_LINES = 350
MAX_TRAIN_LINES = 79

NAMES_THAT_SAY_NOTHING = {"base", "common", "helpers", "misc", "utils"}

DOTTED_NAME = re.compile(r"\w+(\.\w+)+")

# Modules without a test file of their own, each with the reason.
TESTED_ELSEWHERE: dict[str, str] = {
    "pathmoe.data.c_other": "test_c_functions compiles and runs what it writes",
    "pathmoe.data.c_sorts": "test_c_functions compiles and runs what it writes",
    "pathmoe.data.document": "a tuple of names",
    "pathmoe_kernels.expert_mlp_cpu": "test_expert_mlp runs it: it is expert_mlp without a GPU",
    "pathmoe_kernels.route_reference": "test_route runs it: it is route without a GPU",
    "pathmoe_kernels.route_rule": "tuples of names",
    "pathmoe_kernels.route_tiles": "parts of the kernels that test_route_forward_triton and its like run",
    "pathmoe_kernels.rows_reference": "test_row_ops runs it: it is dispatch_rows and combine_rows without a GPU",
    "pathmoe_eval.studies.figure": "fields of a figure",
    "pathmoe_kernels.sort_reference": "test_sort runs it: it is sort_by_expert without a GPU",
}


def _modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            yield package, path


def _source_files() -> list[Path]:
    """Every Python file of the project, tests included."""
    folders = [
        *PACKAGES.values(),
        ROOT / "kernels" / "bench",
        ROOT / "eval" / "bench",
        ROOT / "eval" / "tasks",
        ROOT / "tests",
    ]
    return [ROOT / "train.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def _dotted(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package].parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported_packages(source: str) -> set[str]:
    """Packages of ours that a module reaches: by import, at any depth of the code, or by a class path in a string."""
    reached = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if DOTTED_NAME.fullmatch(node.value) else []
        reached |= {name.split(".")[0] for name in names}
    return reached & PACKAGES.keys()


def _needing_triton() -> set[str]:
    """Modules that import triton when they are imported themselves, by themselves or through one of ours."""
    imports = {}
    for package, path in _modules():
        body = ast.parse(path.read_text()).body
        direct = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        imports[_dotted(package, path)] = direct | {
            node.module or "" for node in body if isinstance(node, ast.ImportFrom) and node.level == 0
        }
    found = {"triton"}
    while more := {name for name, imported in imports.items() if imported & found} - found:
        found |= more
    return found - {"triton"}


def _run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert result.returncode == 0, result.stderr


def test_each_package_imports_only_the_layers_below() -> None:
    violations = [
        f"{path.relative_to(ROOT)} reaches {', '.join(sorted(above))}"
        for package, path in _modules()
        if (above := imported_packages(path.read_text()) - MAY_IMPORT[package])
    ]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    "source",
    [
        "import pathmoe_eval",
        "import pathmoe_eval.paths.paths as p",
        "from pathmoe_eval.paths.paths import path_entropy",
        "def f():\n    from pathmoe_eval import paths",
        "if TYPE_CHECKING:\n    import pathmoe_eval",
        "import_module('pathmoe_eval.paths.paths')",
        "CLASS_PATH = 'pathmoe_eval.hooks.PathEntropy'",
    ],
)
def test_every_way_to_reach_a_layer_is_seen(source: str) -> None:
    assert imported_packages(source) == {"pathmoe_eval"}


def test_mentions_are_not_imports() -> None:
    assert imported_packages('"""pathmoe_eval.paths.paths reads these."""\nx = "pathmoe_eval"\nimport numpy') == set()


@pytest.mark.slow
def test_only_triton_kernels_need_triton() -> None:
    modules, needing = (
        {_dotted(package, path) for package, path in _modules() if path.stem != "__main__"},
        _needing_triton(),
    )
    assert all(name.startswith("pathmoe_kernels.") for name in needing), needing
    names = sorted(modules - needing)
    _run(f"import importlib, sys; sys.modules['triton'] = None; [importlib.import_module(n) for n in {names}]")


def test_the_kernels_stand_alone() -> None:
    modules = {_dotted(package, path) for package, path in _modules() if package == "pathmoe_kernels"}
    names = sorted(modules - _needing_triton())
    heavy = ["transformers", "lightning", "datasets", "pathmoe", "pathmoe_eval", "triton"]
    _run(
        f"import importlib, sys; [importlib.import_module(n) for n in {names}]; "
        f"found = [h for h in {heavy} if h in sys.modules]; assert not found, found"
    )


def test_no_file_is_too_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in _source_files()}
    limits = {path: MAX_TRAIN_LINES if path.name == "train.py" else MAX_LINES for path in lengths}
    too_long = [
        f"{path.relative_to(ROOT)}: {lines} lines, at most {limits[path]}"
        for path, lines in lengths.items()
        if lines > limits[path]
    ]
    assert not too_long, "\n".join(too_long)


def test_files_are_named_after_what_they_define() -> None:
    nameless = [
        path for path in _source_files() if NAMES_THAT_SAY_NOTHING & set(path.with_suffix("").parts[len(ROOT.parts) :])
    ]
    assert not nameless, nameless


@pytest.mark.parametrize("folder", ["kernels", "eval", "tests", "tests/kernels", "tests/eval"])
def test_folders_that_are_not_packages(folder: str) -> None:
    # A package `kernels` or `eval` would hide another project's package of that name.
    assert not (ROOT / folder / "__init__.py").exists()


def _has_test(package: str, path: Path) -> bool:
    """Whether test_<module>.py, or a part of it as test_<module>_<aspect>.py, is where it belongs."""
    folders = [ROOT / folder / path.relative_to(PACKAGES[package]).parent for folder in TEST_FOLDERS[package]]
    patterns = [f"test_{path.stem}.py", f"test_{path.stem}_*.py"]
    return any(any(folder.glob(pattern)) for folder in folders for pattern in patterns)


def test_the_tests_mirror_the_packages() -> None:
    missing = [
        f"{path.relative_to(ROOT)} has no test_{path.name}"
        for package, path in _modules()
        if path.stem not in {"__init__", "__main__"}
        and _dotted(package, path) not in TESTED_ELSEWHERE
        and not _has_test(package, path)
    ]
    assert not missing, "\n".join(missing)


def test_exemptions_are_still_needed() -> None:
    modules = {_dotted(package, path) for package, path in _modules()}
    assert TESTED_ELSEWHERE.keys() <= modules
