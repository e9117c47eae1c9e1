"""The generated benchmark trace: reproducible, valid, and with the paths that it says."""

# Shapes: N tokens, L MoE layers, K experts per token.

import math
import subprocess
import sys
from pathlib import Path

import generate_trace
import numpy as np
import pytest
from generate_trace import TraceShape, generated_chunks, write_generated

from pathmoe_eval.layers.agreement import AdjacentCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.traces.trace import open_trace

SCRIPT = Path(generate_trace.__file__)


def test_paths_are_mostly_distinct_and_neighbours_agree_as_often_as_drawn():
    shape = TraceShape(num_tokens=200_000)
    paths = PathCounts(num_layers=24, num_experts=16)
    neighbours = AdjacentCounts(num_layers=24, num_experts=16)
    for chunk in generated_chunks(shape):
        paths.update(chunk.expert_ids_NLK[..., 0])
        neighbours.update(chunk.expert_ids_NLK[..., 0])
    found = paths.result()
    assert found.num_tokens == shape.num_tokens
    alone = (1 - generate_trace.FREQUENT_SHARE) * shape.num_tokens
    # Paths of their own never meet among 16^24; the others are at most as many as there are frequent ones.
    assert alone - 5 * math.sqrt(alone) < found.num_paths < alone + generate_trace.NUM_FREQUENT_PATHS
    expected = generate_trace.STAY_PROBABILITY + (1 - generate_trace.STAY_PROBABILITY) / 16
    assert neighbours.result().mean_agreement == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("num_experts", "num_experts_per_tok"), [(16, 4), (300, 3), (2, 2), (1, 1)])
def test_a_written_trace_is_valid_and_the_same_again(tmp_path, num_experts, num_experts_per_tok):
    shape = TraceShape(
        num_tokens=70_500, num_layers=3, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok, seed=3
    )
    write_generated(str(tmp_path / "a"), shape)
    write_generated(str(tmp_path / "b"), shape)
    assert (tmp_path / "a" / "tokens.arrow").read_bytes() == (tmp_path / "b" / "tokens.arrow").read_bytes()
    trace = open_trace(tmp_path / "a")
    assert trace.num_tokens == shape.num_tokens
    assert trace.num_sequences == 71
    for chunk in trace.chunks():
        in_order_NLK = np.sort(chunk.expert_ids_NLK, axis=-1)
        assert np.all(np.diff(in_order_NLK.astype(int), axis=-1) > 0)  # no expert twice
    assert set(trace.domains()) == set(generate_trace.DOMAINS)


def test_the_command_writes_a_trace_and_refuses_in_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "trace"), "--layers", "2", "--tokens"]
    subprocess.run([*command, "1000"], check=True)
    assert open_trace(tmp_path / "trace").num_tokens == 1000
    for tokens, message in (("0", "error: --tokens (0) must be at least 1"), ("5", "(another trace) must be a new")):
        result = subprocess.run([*command, tokens], capture_output=True, text=True)
        assert result.returncode == 2
        assert message in result.stderr and result.stderr.count("\n") == 1
