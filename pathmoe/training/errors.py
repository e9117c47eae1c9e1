"""How an error of the user's reaches the user: one line on stderr, exit status 2."""

import re
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from huggingface_hub.errors import StrictDataclassError
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

_OUR_PACKAGES = ("pathmoe", "pathmoe_kernels", "pathmoe_eval")


def one_line(message: str) -> str:
    """A parser's message as one line that leads with the innermost key it names."""
    message = re.sub(
        r"^Subcommand '\w+' does not accept option '([^']+)'$", r"\1 is not a known key; see --help", message
    )
    message = re.sub(r"^unrecognized arguments: (--\S+)(.*)$", r"\1 is not a known option; see --help", message)
    message = re.sub(r"^Option '([^']+)' is not accepted$", r"\1 is not a known key here; see --help", message)
    keys = re.findall(r"[Kk]ey \"([^\"]+)\"", message)
    if keys:
        detail = re.split(r"[Kk]ey \"[^\"]+\":", message)[-1]
        value = re.findall(r"(?:Got value|Given value): (.*)", detail)
        allowed = _allowed(detail)
        if value and allowed:
            return f"{keys[-1]} ({value[-1].strip()}) must be {allowed}; change the value"
        message = f"{keys[-1]}: {detail}"
    return re.sub(r"\s+", " ", message).strip()


def _allowed(detail: str) -> str:
    """The types that the parser expected, in words."""
    subtypes = re.search(r"Subtypes: \[(.*)\]", detail)
    expected = subtypes.group(1) if subtypes else ", ".join(re.findall(r"Expected an? (.*?)\. Got value", detail))
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", expected)
    if literal:
        return f"one of {literal.group(1)}"
    words = re.sub(r"<class '(?:builtins\.)?([\w.]+)'>", r"\1", expected)
    return words.replace("NoneType", "null").replace(", ", " or ")


class OneLineParser(LightningArgumentParser):
    """Lightning's parser, with errors of one line instead of the usage text."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with status 2."""
        fail(one_line(message))


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with status 2."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def with_one_line_errors(program: Callable[[], None]) -> None:
    """Run `program`; an error that our own code raised about what the user gave ends in one line.

    A ValueError from anywhere else is a fault of ours or of a library's, and keeps its traceback.
    """
    try:
        program()
    except StrictDataclassError as error:
        fail("model.config: " + one_line(str(error)))
    except ValueError as error:
        if not _is_ours(error):
            raise
        fail(re.sub(r"\s+", " ", str(error)))


def _is_ours(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.split(".")[0] in _OUR_PACKAGES


__all__ = ["ArgumentParser", "OneLineParser", "fail", "one_line", "with_one_line_errors"]
