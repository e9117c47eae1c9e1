"""Train, validate and export: `python train.py fit --config configs/tiny.yaml --config configs/routers/path_b4.yaml`"""

import signal
import sys

if __name__ == "__main__":
    try:
        from pathmoe.training.cli import main  # seconds, in which Ctrl-C shall end in one line, too
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        raise SystemExit(128 + signal.SIGINT) from None
    main()
