"""The benchmark of geometry at a tiny size."""

import subprocess
import sys
from pathlib import Path

import geometry_scale
import pytest


def test_it_runs_and_no_pair_is_beyond_the_bound() -> None:
    lines = geometry_scale.geometry_lines(num_tokens=300, hidden_size=64, num_experts=8, k=2)
    assert lines[0] == "300 tokens of 64 numbers, top-2 of 8 experts, two layers"
    assert float(lines[1].split()[-1]) > 0 and lines[-1].split()[-1] == "0"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("option", ["--tokens", "--hidden_size"])
def test_too_few_are_refused_in_one_line(option: str) -> None:
    script = Path(geometry_scale.__file__)
    ended = subprocess.run([sys.executable, script, option, "10"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {option} (10) must be at least 64") and ended.stderr.count("\n") == 1
