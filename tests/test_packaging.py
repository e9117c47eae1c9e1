"""What an installation brings: declared and pinned dependencies, the right files in the wheel, the command."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGE_FOLDERS = [ROOT / "pathmoe", ROOT / "kernels" / "pathmoe_kernels", ROOT / "eval" / "pathmoe_eval"]

# torch's CUDA build pins these itself; its other builds have none of them.
PINNED_BY_TORCH = re.compile(r"nvidia-|cuda-")


def _declared(extras: tuple[str, ...] = ()) -> list[Requirement]:
    optional = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    requirements = [Requirement(line) for line in [*PROJECT["dependencies"], *optional]]
    return [requirement for requirement in requirements if requirement.name != PROJECT["name"]]


def _constraints() -> dict[str, Requirement]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def _needed(declared: list[Requirement]) -> set[str]:
    """Names of the declared distributions and, transitively, of what the installed versions of them require."""
    names: set[str] = set()
    visited: set[tuple[str, str]] = set()
    queue = [(requirement, "") for requirement in declared]
    while queue:
        requirement, extra_of_parent = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra_of_parent}):
            continue
        name = canonicalize_name(requirement.name)
        names.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in visited:
                visited.add((name, extra))
                queue += [(Requirement(line), extra) for line in metadata.requires(name) or []]
    return names


def test_constraints_cover_everything_that_is_installed() -> None:
    needed = _needed(_declared(extras=("dev", "tasks", "tensorboard")))
    missing = {name for name in needed - _constraints().keys() if not PINNED_BY_TORCH.match(name)}
    assert not missing, f"constraints.txt lacks {sorted(missing)}"


def test_constraints_lie_within_the_declared_ranges() -> None:
    constraints = _constraints()
    for requirement in _declared(extras=("dev", "tasks", "tensorboard")):
        for pin in constraints[canonicalize_name(requirement.name)].specifier:
            assert requirement.specifier.contains(pin.version), f"constraints.txt: {pin}, pyproject.toml: {requirement}"


def test_constraints_are_exact() -> None:
    loose = {name for name, pin in _constraints().items() if [s.operator for s in pin.specifier] != ["=="]}
    assert loose == {"triton"}  # torch's builds disagree on its version


def test_every_import_is_declared() -> None:
    imported = set()
    for path in [path for folder in PACKAGE_FOLDERS for path in folder.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.split(".")[0])
    third_party = imported - sys.stdlib_module_names - {folder.name for folder in PACKAGE_FOLDERS}
    distributions = metadata.packages_distributions()
    provided = {name: {canonicalize_name(d) for d in distributions.get(name, [name])} for name in third_party}
    declared = {canonicalize_name(requirement.name) for requirement in _declared(extras=("tasks", "tensorboard"))}
    undeclared = sorted(name for name, candidates in provided.items() if not candidates & declared)
    assert not undeclared, f"pyproject.toml does not declare what provides {undeclared}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_the_configs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        str(path.relative_to(folder.parent))
        for folder in PACKAGE_FOLDERS
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    configs = {f"pathmoe/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert configs
    assert packed == modules | configs


@pytest.mark.slow
def test_an_installed_command_finds_the_shipped_configs(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(installed)]
    environment = os.environ | {"PYTHONPATH": str(installed), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*command: str | Path) -> str:
        result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    run(*pip, wheel)
    script = "from importlib.util import find_spec as f; print(*[f(name).origin for name in %r], sep='\\n')"
    names = [folder.name for folder in PACKAGE_FOLDERS]
    origins = run(sys.executable, "-c", script % names).splitlines()
    assert origins == [str(installed / name / "__init__.py") for name in names], (
        "those of the wheel, not of this checkout"
    )

    printed = run(
        sys.executable, installed / "bin" / "pathmoe", "fit", "--config", "tiny", "--config", "path_b4", "--dry_run"
    )
    settings = yaml.safe_load(printed.partition("\n\n")[0])
    assert settings["model"]["config"]["layers_per_router"] == 4
    assert "tokens per step" in printed
    assert list(elsewhere.iterdir()) == []


def test_the_command_is_installed() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="pathmoe")
    assert callable(command.load())
