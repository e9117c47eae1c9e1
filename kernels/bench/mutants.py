"""`make mutants`: plant bugs in the kernels, one at a time, and write to MUTANTS.md how many the tests catch."""

import sys

from mutant_testing import check, write_report
from one_line_parser import OneLineParser
from short_sets import kernel_files


def main() -> None:
    """Test the mutants of all files or of those that are named, or with --check a few of each."""
    parser = OneLineParser(prog="python kernels/bench/mutants.py", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="a kernel file, such as rows_triton; all if none is")
    parser.add_argument("--check", action="store_true", help="test a few mutants of each, and write nothing")
    arguments = parser.parse_args()
    for file in arguments.files:
        if file not in kernel_files():
            parser.error(f"FILE ({file}) must be one of {', '.join(kernel_files())}")
    parser.need_triton("to interpret its kernels")
    files = arguments.files or list(kernel_files())
    try:
        for line in check(files) if arguments.check else write_report(files):
            print(line, flush=True)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
