"""`python -m pathmoe` as a process of its own."""

import subprocess
import sys


def test_it_is_the_training_command_line() -> None:
    ended = subprocess.run([sys.executable, "-m", "pathmoe", "fitt"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "error: the subcommand (fitt) must be one of fit, validate, export; give it first\n"
