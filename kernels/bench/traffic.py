"""`make traffic`: count the bytes that the kernels touch, and work out what a layer takes on a GPU at best."""

import os
from importlib.util import find_spec

from resources import OneLineParser


def main() -> None:
    """Print both tables."""
    parser = OneLineParser(prog="python kernels/bench/traffic.py", description=__doc__)
    parser.parse_args()
    if find_spec("triton") is None:
        parser.exit(
            2, "error: triton (not installed) must be, to interpret its kernels; pip install triton, on Linux\n"
        )
    # Read when a kernel is defined.
    os.environ["TRITON_INTERPRET"] = "1"
    from traffic_table import MODELS, counted_table, gate_balance, roofline_table

    print("\n\n".join([counted_table(), *map(roofline_table, MODELS), gate_balance()]))


if __name__ == "__main__":
    main()
