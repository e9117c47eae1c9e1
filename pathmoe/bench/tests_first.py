"""What is timed is tested first."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pathmoe.training.errors import fail


def run_tests(
    root: Path, tests: Sequence[str], options: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> None:
    """Run tests with pytest in a process of their own, and end in one line where there are none or one fails.

    Args:
        root: the checkout.
        tests: files and folders below its `tests`.
        options: of pytest.
        environment: variables that the tests see beside those of this process.
    """
    folder = root / "tests"
    if not folder.is_dir():
        fail(f"{folder} must be there, as what is timed is tested first; run it from a checkout")
    command = [sys.executable, "-m", "pytest", "-q", *options, *(str(folder / name) for name in tests)]
    if subprocess.run(command, cwd=root, env={**os.environ, **(environment or {})}).returncode:
        fail(f"{folder}: the tests of what is timed must pass; mend what fails above")
