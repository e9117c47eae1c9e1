"""`make bench-eval`: paths and consistency of millions of tokens from a trace on disk, the sketch of paths, all of an
analysis, and what recording adds to a forward pass."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import trace_passes
from generate_trace import TraceShape, write_generated
from torch import Tensor

from pathmoe import PathMoEConfig, PathMoEForCausalLM
from pathmoe.bench.paired import paired_seconds, ratio
from pathmoe.bench.peer import our_inputs
from pathmoe.bench.tests_first import run_tests
from pathmoe.bench.tiny import tiny_run
from pathmoe.training.config_files import config_folder
from pathmoe.training.errors import OneLineParser, fail, with_one_line_errors
from pathmoe.training.provenance import provenance
from pathmoe_eval.traces.recorder import RoutingRecorder

NUM_TOKENS = [1_000_000, 3_000_000, 7_180_000]
MAX_SECONDS = 60
MAX_BYTES = 2 << 30
MAX_RECORDING_PERCENT = 5
TESTED = (
    "paths",
    "layers",
    "test_analysis.py",
    "test_path_and_layer_counts.py",
    "traces/test_trace.py",
    "traces/test_recorder.py",
    "test_generate_trace.py",
    "test_trace_passes.py",
)
"""Tests below tests/eval of what is timed."""

Quartiles = tuple[float, float, float]
"""Lower quartile, median and upper quartile."""


def measured_pass(name: str, folder: str | Path, num_tokens: int) -> dict[str, Any]:
    """What `trace_passes` finds in the first tokens of a trace, and the seconds of its whole process."""
    command = [sys.executable, trace_passes.__file__, name, str(folder), str(num_tokens)]
    start = time.perf_counter()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {**json.loads(output), "seconds": time.perf_counter() - start}


def trace_figures(num_tokens: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Each pass over so many first tokens of one generated trace, which is removed again."""
    with tempfile.TemporaryDirectory() as folder:
        write_generated(folder, TraceShape(num_tokens=max(num_tokens)))
        return {name: [measured_pass(name, folder, n) for n in sorted(num_tokens)] for name in trace_passes.PASSES}


def recording_figures(config: PathMoEConfig, batch: Mapping[str, Tensor], rounds: int) -> dict[str, Quartiles]:
    """What recording adds to a forward pass, as a share of its time; `take` is included."""
    torch.manual_seed(0)
    model, inputs = PathMoEForCausalLM(config).eval(), our_inputs(batch)

    @torch.no_grad()
    def forward() -> None:
        model(**inputs)

    def recorded(**kinds: bool) -> None:
        with RoutingRecorder(model, **kinds) as recorder:
            forward()
        recorder.take()

    calls = {
        "nothing": forward,
        "expert ids": recorded,
        "expert ids, weights, logits": lambda: recorded(weights=True, logits=True),
    }
    seconds = paired_seconds(calls, rounds)
    ratios = {name: ratio(seconds, name, "nothing") for name in calls if name != "nothing"}
    return {name: (lower - 1, median - 1, upper - 1) for name, (lower, median, upper) in ratios.items()}


def exact_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each exact pass, and whether the largest is within the budget."""
    lines = [
        "Exact: concentration of whole paths and of blocks, consistency of all layers",
        f"{'tokens':>10}{'distinct':>11}{'entropy':>9}{'seconds':>9}{'s/million':>11}{'peak MiB':>10}",
    ]
    for row in rows:
        lines.append(
            f"{row['num_tokens']:>10,}{row['num_paths']:>11,}{row['entropy_bits']:>9.4f}{row['seconds']:>9.1f}"
            f"{row['seconds'] / row['num_tokens'] * 1e6:>11.2f}{row['peak_bytes'] / 2**20:>10.0f}"
        )
    largest = rows[-1]
    return [
        *lines,
        _verdict(f"{largest['num_tokens']:,} tokens: seconds", largest["seconds"], MAX_SECONDS),
        _verdict(f"{largest['num_tokens']:,} tokens: peak MiB", largest["peak_bytes"] / 2**20, MAX_BYTES / 2**20),
        f"Of whole processes on at most {trace_passes.MAX_CORES} cores, from their start, and reading from",
        "disk. Peaks are of resident memory; mapped pages of the trace count until they",
        "are let go of, batch by batch.",
    ]


def sketch_lines(rows: Sequence[Mapping[str, Any]], exact_rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each sketch, with its errors against the exact pass."""
    lines = [
        "Sketch: the same paths in fixed memory",
        f"{'tokens':>10}{'distinct':>10}{'error':>8}{'stated':>8}{'entropy':>8}{'error':>9}{'stated':>8}"
        f"{'s':>6}{'MiB':>6}{'peak':>6}",
    ]
    for row, true in zip(rows, exact_rows, strict=True):
        lines.append(
            f"{row['num_tokens']:>10,}{row['num_paths']:>10,}{row['num_paths'] - true['num_paths']:>+8,}"
            f"{row['num_paths_standard_error']:>8,.0f}{row['entropy_bits']:>8.4f}"
            f"{row['entropy_bits'] - true['entropy_bits']:>+9.5f}{row['entropy_standard_error_bits']:>8.5f}"
            f"{row['seconds']:>6.1f}{row['array_bytes'] / 2**20:>6.1f}{row['peak_bytes'] / 2**20:>6.0f}"
        )
    return [
        *lines,
        "Errors are estimate - exact, stated ones are standard errors. MiB are the most",
        "that its arrays held between chunks, the peak is of the process, in MiB.",
    ]


def analysis_lines(rows: Sequence[Mapping[str, Any]], sketched_rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each whole analysis, exact and with paths in fixed memory."""
    lines = [
        "Analysis: every section of a report of these tokens",
        f"{'':>10}{'exact, with classes':>29}{'in fixed memory':>29}",
        f"{'tokens':>10}" + f"{'seconds':>9}{'s/million':>10}{'peak MiB':>10}" * 2,
    ]
    for both in zip(rows, sketched_rows, strict=True):
        cells = [
            f"{row['seconds']:>9.1f}{row['seconds'] / row['num_tokens'] * 1e6:>10.2f}{row['peak_bytes'] / 2**20:>10.0f}"
            for row in both
        ]
        lines.append(f"{both[0]['num_tokens']:>10,}{''.join(cells)}")
    return [
        *lines,
        _verdict(f"{rows[-1]['num_tokens']:,} tokens: peak MiB", rows[-1]["peak_bytes"] / 2**20, MAX_BYTES / 2**20),
        "Classes are made up from token ids, and the tokens of paths, which need a text,",
        "are left out. Half a GiB is of torch and transformers, which the command loads.",
    ]


def recording_lines(figures: Mapping[str, Quartiles]) -> list[str]:
    """A line for each kind of recording, and whether the first is within the budget."""
    lines = ["Recording: what it adds to a forward pass of the tiny model, quartiles"]
    lines += [f"  {name:<28}" + "".join(f"{share:>+8.1%}" for share in shares) for name, shares in figures.items()]
    return [*lines, _verdict("expert ids: median %", 100 * figures["expert ids"][1], MAX_RECORDING_PERCENT)]


def _verdict(what: str, value: float, limit: float) -> str:
    return f"{what} {value:.1f}, at most {limit:g}: {'yes' if value <= limit else 'NO'}"


def main() -> None:
    """Run the tests of what is timed, then time it, and print versions, commit and figures."""
    parser = OneLineParser(prog="python eval/bench/scale.py", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=NUM_TOKENS, help="Tokens of the traces.")
    parser.add_argument("--rounds", type=int, default=40, help="Rounds of forward passes that are timed.")
    options = parser.parse_args()
    if (least := min(options.tokens)) < 1:
        fail(f"--tokens ({least}) must be at least 1; raise it")
    if options.rounds < 2:
        fail(f"--rounds ({options.rounds}) must be at least 2, for quartiles; raise it")
    run_tests(config_folder().parent, [f"eval/{name}" for name in TESTED], ("-m", "not slow"))
    print(json.dumps(provenance(), indent=2), flush=True)
    run = tiny_run()
    recording = recording_figures(run.config, next(run.data.train_batches()), options.rounds)
    figures = trace_figures(options.tokens)
    sections = (
        exact_lines(figures["exact"]),
        sketch_lines(figures["sketch"], figures["exact"]),
        analysis_lines(figures["analysis"], figures["sketched"]),
        recording_lines(recording),
    )
    for lines in sections:
        print("", *lines, sep="\n")


if __name__ == "__main__":
    with_one_line_errors(main)
