"""`python -m pathmoe` as a process of its own."""

import subprocess
import sys

from pathmoe.training.provenance import installed_version


def test_it_is_the_training_command_line() -> None:
    command = [sys.executable, "-m", "pathmoe"]
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"pathmoe {installed_version('pathmoe')}\n"
    wrong = subprocess.run([*command, "fitt"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: the subcommand (fitt) must be one of fit, validate, export")
