"""`make traffic`: count the bytes that the kernels touch, and work out what a layer takes on a GPU at best."""

import os

from one_line_parser import OneLineParser


def main() -> None:
    """Print both tables."""
    parser = OneLineParser(prog="python kernels/bench/traffic.py", description=__doc__)
    parser.parse_args()
    parser.need_triton("to interpret its kernels")
    # Read when a kernel is defined.
    os.environ["TRITON_INTERPRET"] = "1"
    from traffic_table import MODELS, counted_table, gate_balance, roofline_table

    print("\n\n".join([counted_table(), *map(roofline_table, MODELS), gate_balance()]))


if __name__ == "__main__":
    main()
