"""What `fit` with some arguments would train, for programs that plan runs."""

import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import yaml

from pathmoe.training.cli import main

# The table of a dry run begins with it, after a blank line; within YAML what follows one is indented.
_TABLE = re.compile(r"\n\nparameters ")


def resolved_fit(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration after all files and flags, plain types, as a dry run prints and checks it.

    Args:
        arguments: what follows `fit`.

    Raises:
        ValueError: what the dry run says in its one line.
    """
    out, err, own = io.StringIO(), io.StringIO(), sys.argv[:]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(["fit", *arguments, "--dry_run"])
    except SystemExit as end:
        if end.code:
            lines = err.getvalue().strip().splitlines() or [f"fit ends with status {end.code}"]
            raise ValueError(lines[-1].removeprefix("error: ")) from end
    finally:
        sys.argv[:] = own
    resolved: dict[str, Any] = yaml.safe_load(_TABLE.split(out.getvalue())[0])
    return resolved
