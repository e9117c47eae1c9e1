"""`make resources`: compile every kernel for GPUs that need not be there, and write what it takes to RESOURCES.md."""

import os
import sys

from one_line_parser import OneLineParser


def main() -> None:
    """Write the table, or with --check compile its corners and compare."""
    parser = OneLineParser(prog="python kernels/bench/resources.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compile the corners and compare them with the table")
    check = parser.parse_args().check
    parser.need_triton("to compile its kernels")
    if os.environ.get("TRITON_INTERPRET"):
        parser.exit(2, "error: TRITON_INTERPRET must not be set, or kernels are not compiled; unset it\n")
    # Not before: it takes triton, and compiled kernels.
    from resource_table import check_corners, write_table

    try:
        print(check_corners() if check else write_table())
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
