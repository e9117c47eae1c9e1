"""Command lines whose errors are one line."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse without the usage text above its errors."""

    def error(self, message: str) -> NoReturn:
        """One line, status 2."""
        self.exit(2, f"error: {message}; see --help\n")
