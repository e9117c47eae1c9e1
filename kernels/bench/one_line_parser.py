"""Command lines whose errors are one line."""

import argparse
from importlib.util import find_spec
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text above its errors."""

    def error(self, message: str) -> NoReturn:
        """One line, status 2."""
        self.exit(2, f"error: {message}; see --help\n")

    def need_triton(self, purpose: str) -> None:
        """End where it is not installed."""
        if find_spec("triton") is None:
            self.exit(2, f"error: triton (not installed) must be, {purpose}; pip install triton, on Linux\n")
