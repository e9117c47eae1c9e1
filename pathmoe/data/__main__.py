"""`python -m pathmoe.data`: prepare the data of a run before it, and verify what was prepared."""

import sys


def main() -> None:
    """Run the command line, which is loaded here, since workers load this file too."""
    from pathmoe.data import command
    from pathmoe.training.errors import with_one_line_errors

    with_one_line_errors(lambda: command.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
