"""How an error of the user's, or a stop, reaches the user: one line on stderr; the exit status of an error is 2."""

import errno
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pathmoe.training.lost_rank import LOST_RANK_STATUS, failed_collective
from pathmoe.training.stop_signals import Stopped, stopping_at_once

_SECONDS_TO_SPEAK = 5.0
_OUR_PACKAGES = ("pathmoe", "pathmoe_kernels", "pathmoe_eval")


def one_line(message: str, known_keys: Iterable[str] = ()) -> str:
    """A parser's message as one line that leads with the innermost key it names.

    Args:
        message: of jsonargparse or argparse.
        known_keys: what a key that is not known may have been meant to be.
    """
    message = re.sub(r"\s+", " ", message).strip()
    for pattern, clearer in _CLEARER.items():
        message = re.sub(pattern, clearer, message)
    unknown = re.match(r"(?:--)?(\S+) .*is not a known (?:key|option); see --help", message)
    if unknown and (close := get_close_matches(unknown[1], known_keys, n=1, cutoff=0.85)):
        return message.replace("see --help", f"did you mean {close[0]}?")
    key = re.match(r"Parser key \"([^\"]+)\": (.*)", message)
    if not key:
        return message
    name, detail = key.groups()
    given = re.search(r"Given value: (.*)$", detail) or re.search(r"Got value: (.*)$", detail)
    class_path = re.search(r"Problem with given class_path '(.+?)': (.*?) - ", detail + " - ")
    if class_path:
        return f"{name}: class_path ({class_path[1]}) can't be used ({class_path[2]}); change it"
    if given and (allowed := _allowed(detail)):
        return f"{name} ({given[1]}) must be {allowed}; change it"
    return f"{name}: {detail}"


# jsonargparse's messages that lack the key's place in the line, or what to do.
_CLEARER = {
    r"^Subcommand '\w+' does not accept option '(.+)'$": r"\1 is not a known key; see --help",
    r"^Option '(.+)' is not accepted$": r"\1 is not a known argument of the class that it is given to; see there",
    r"^unrecognized arguments: (-[^\s=]+)=(\S*).*$": r"\1 (\2) is not a known option; see --help",
    r"^unrecognized arguments: (-\S+) ([^-]\S*).*$": r"\1 (\2) is not a known option; see --help",
    r"^unrecognized arguments: (\S+).*$": r"\1 is not a known option; see --help",
    r"^argument (?:-c/)?(--[^\s/]+)(?:/\S+)?: expected one argument$": r"\1 must be followed by a value; add it",
    r"^the following arguments are required: (?:\w+\.)?([\w.]+).*$": r"--\1 must be given; add it",
}


def _allowed(detail: str) -> str | None:
    """The types that the parser expected, in words; None where it does not say."""
    types = re.search(r"Subtypes: \[(.*?)\] Errors:", detail) or re.search(r"Expected an? (.*?)\. Got value", detail)
    if types is None:
        return None
    expected = types[1]
    choices = re.findall(r"typing\.Literal\[(.*?)\]", expected)
    if choices:
        choices += ["null"] if "NoneType" in expected else []
        return f"one of {', '.join(choices)}"
    words = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", expected)
    words = re.sub(r"\btuple(\[[^]]*\])?", "list [...]", words)
    return f"of type {words.replace('NoneType', 'null').replace(', ', ' or ')}"


class OnAllRanksError(ValueError):
    """An error that all ranks of a run raise with one message, of which the first rank tells the user."""


class OneLineParser(LightningArgumentParser):
    """Lightning's parser, with errors of one line instead of the usage text, and options by their full names only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with status 2."""
        fail(one_line(message, self._known_keys()))

    def _known_keys(self) -> list[str]:
        subparsers = self._subcommands_action.choices.values() if self._subcommands_action else ()
        options = [option for parser in (self, *subparsers) for option in parser._option_string_actions]
        return [option.removeprefix("--") for option in options]


def fail(message: str, status: int = 2) -> NoReturn:
    """Print one line on stderr and exit."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(status)


def with_one_line_errors(program: Callable[[], None]) -> None:
    """Run `program`; a signal, or an error about what the user gave, a place on disk or a missing package, ends in one
    line.

    A ValueError from anywhere else is a fault of ours or of a library's, and keeps its traceback.
    """
    try:
        with stopping_at_once():
            program()
    except Stopped as stopped:
        _let_the_first_rank_speak()
        if not rank_zero_only.rank:
            sys.stderr.write(f"{stopped.line}\n")
        raise
    except MisconfigurationException as error:
        fail("trainer: " + one_line(str(error)))
    except OSError as error:
        if error.filename is not None:
            fail(f"{error.filename} can't be used ({error.strerror}); choose another place")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(f"the disk can't be written to ({error.strerror}); make room, or choose another --run_dir")
        raise
    except ImportError as error:
        if not _is_a_missing_package(error):
            raise
        fail(f"{one_line(str(error))}; install the package that has it")
    except RuntimeError as error:
        if failed_collective(error) is None:
            raise
        # What a callback has noted: where the run was, and how it goes on.
        fail(" ".join(getattr(error, "__notes__", [str(error)])), LOST_RANK_STATUS)
    except OnAllRanksError as error:
        _let_the_first_rank_speak()
        if rank_zero_only.rank:
            raise SystemExit(2) from error
        fail(str(error))
    except ValueError as error:
        # The parser wraps what a callback that it makes has to say.
        if ours := next((cause for cause in (error, error.__cause__) if cause and _is_ours(cause)), None):
            fail(re.sub(r"\s+", " ", str(ours)))
        # From the parser, which makes the loggers and callbacks that were asked for.
        refused = re.search(r"Problem with given class_path '(.+)':\s*(.+)", str(error))
        if refused is None:
            raise
        fail(f"class_path ({refused[1]}) can't be used ({refused[2]}); install what it needs, or change it")


def _let_the_first_rank_speak() -> None:
    # A launcher may end all ranks once one of them has ended.
    if rank_zero_only.rank:
        time.sleep(_SECONDS_TO_SPEAK)


def _is_a_missing_package(error: ImportError) -> bool:
    """Whether a package of others is not installed; one that lacks a name is of the wrong version, or our fault."""
    package = (error.name or "").split(".")[0]
    return package not in _OUR_PACKAGES and (error.name is None or isinstance(error, ModuleNotFoundError))


def _is_ours(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    module = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return module.split(".")[0] in _OUR_PACKAGES
