"""`pathmoe-eval` and `python -m pathmoe_eval`: the command line, which Ctrl-C ends in one line also while it loads."""

import signal
import sys


def main() -> None:
    """Load the command line, which takes seconds, and run it."""
    try:
        from pathmoe_eval import cli
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        raise SystemExit(128 + signal.SIGINT) from None
    cli.main()


if __name__ == "__main__":
    main()
