"""`python -m pathmoe`: the training command line, which Ctrl-C ends in one line also while it loads."""

import signal
import sys

if __name__ == "__main__":
    try:
        from pathmoe.training.cli import main
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        raise SystemExit(128 + signal.SIGINT) from None
    main()
