"""The command line as a process that gets Ctrl-C, while it loads and while it works: one line, and a shell's status."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WAIT = "import pathlib, time\npathlib.Path('ready').touch()\ntime.sleep(60)\n"


@pytest.mark.parametrize("module", ["jsonargparse", "tagger"], ids=["while it loads", "while it works"])
def test_ctrl_c_ends_in_one_line(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(WAIT)
    path = os.pathsep.join([str(tmp_path), *map(os.path.abspath, filter(None, sys.path))])
    arguments = ["paths", "--trace", "t", "--out", "out", "--tagger", "tagger:classes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pathmoe_eval", *arguments], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    started = time.monotonic()
    while not (tmp_path / "ready").exists():
        assert process.poll() is None and time.monotonic() - started < 120, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "stopped\n")
    assert process.returncode == 130
