"""Bytes that the kernels touch in Triton's interpreter against their bounds, and kernels/README.md's roofline."""

# Shapes: T tokens, E experts, K experts per token, D hidden, F expert width, b bytes a number, N routed rows.

import subprocess
import sys
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import bounds
import pytest
import torch
import traffic
import triton
import triton.language as tl
import yaml
from bounds import Options, Shape, Step
from one_layer import counted_layer, shape_of
from touched import Launch, Touched, count_touched
from traffic_table import FLOPS_PER_SECOND, MODELS, counted_table, gate_balance, memory_bound_experts, roofline_table
from triton.runtime.errors import InterpreterError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "kernels" / "README.md").read_text()

# T, E, K, D, F, b: a ragged last tile, and one of two tokens; rows in one block of columns, and in two.
CASES = {
    "E=60 K=2 bf16": ((150, 60, 2, 80, 24, 2), Options()),
    "E=128 K=1 fp32, all options": ((70, 128, 1, 64, 16, 4), Options(*[True] * 5)),
    "E=16 K=8 bf16": ((130, 16, 8, 520, 8, 2), Options(renormalised=True)),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
Case = tuple[tuple[int, int, int, int, int, int], Options]

READ_BY_EVERY_PROGRAM = {"ticket", "ends", "last_end"}
"""Few bytes, how often depends on the grid."""


@cache
def counted(case: Case) -> list[tuple[Step, Launch]]:
    return counted_layer(shape_of(*case[0]), case[1])


@EVERY_CASE
def test_distinct_bytes_are_those_on_paper(case: Case) -> None:
    for step, launch in counted(case):
        assert launch.kernel == step.kernel
        for side in ("reads", "writes"):
            on_paper = {argument: size for argument, size in getattr(step, side).items() if size}
            found = {argument: bytes_.distinct for argument, bytes_ in getattr(launch, side).items()}
            assert found == on_paper, (step.name, side)


def times(shape: Shape, options: Options) -> dict[tuple[str, str, str], float]:
    """How often each byte is touched, where that is not once."""
    columns, chunks = ceil(shape.D / 512), shape.C
    scanned = {(kernel, side): 2 for kernel in ("route_forward", "count_rows") for side in ("reads", "writes")}
    return {
        **{(*scan, "chunk_starts"): count for scan, count in scanned.items()},
        ("route_forward", "reads", "gate"): chunks,
        ("route_forward", "reads", "bias"): chunks,
        ("route_backward", "reads", "gate"): 2 * chunks,
        ("route_backward", "reads", "grad_logits"): ceil(shape.D / 64),
        ("route_backward", "reads", "grad_probability"): chunks,
        ("route_backward", "reads", "weights"): 2 if options.renormalised else 1,
        ("route_backward", "reads", "grad_weights"): 2 if options.renormalised else 1,
        ("gather_rows", "reads", "position"): columns,
        ("combine_rows", "reads", "position"): columns,
        ("combine_rows", "reads", "weights"): columns,
    }


@EVERY_CASE
def test_all_bytes_are_touched_once_but_for_these(case: Case) -> None:
    expected = times(shape_of(*case[0]), case[1])
    for step, launch in counted(case):
        for side in ("reads", "writes"):
            for argument, (distinct, touched) in getattr(launch, side).items():
                if argument not in READ_BY_EVERY_PROGRAM:
                    key = (launch.kernel, side, argument)
                    assert touched == expected.get(key, 1) * distinct, (step.name, *key)


@EVERY_CASE
def test_the_gate_is_read_once_a_tile(case: Case) -> None:
    shape = shape_of(*case[0])
    by_kernel = {launch.kernel: launch.reads for _, launch in counted(case)}
    for kernel, reads_of_gate in [("route_forward", 1), ("route_backward", 2)]:
        x, gate = by_kernel[kernel]["x"], by_kernel[kernel]["gate"]
        assert x.touched == x.distinct == shape.T * shape.D * shape.b
        # The last addend is the ragged tile.
        assert (x.touched + gate.touched) / x.distinct <= 1 + reads_of_gate * (shape.E / shape.tile + shape.E / shape.T)


@pytest.mark.parametrize("shape", MODELS.values(), ids=MODELS)
def test_an_operation_keeps_less_than_a_tenth_to_itself(shape: Shape) -> None:
    backward = [step for step in bounds.backward(shape) if step.name in ("route_backward", "mm dW")]
    assert len(backward) == 2
    operations = [bounds.forward(shape)[:2], backward, bounds.sort_by_expert(shape, 512)]
    for steps in operations:
        workspace, all_bytes = sum(step.workspace for step in steps), sum(step.bytes for step in steps)
        assert 0 < workspace < 0.1 * (all_bytes - workspace)


@triton.jit
def scatter_kernel(index_ptr, target_ptr, count_ptr, num, N: tl.constexpr):
    lane = tl.arange(0, N)
    index = tl.load(index_ptr + lane, lane < num, 0)
    tl.store(target_ptr + index, index.to(tl.float16), lane < num)
    tl.atomic_add(count_ptr, tl.load(target_ptr).to(tl.int32))


def scatter(index: list[int], size: int) -> list[Launch]:
    index_N, target = torch.tensor(index), torch.zeros(size, dtype=torch.float16)
    count = torch.zeros(2, dtype=torch.int32)
    return count_touched(lambda: scatter_kernel[(2,)](index_N, target, count, num=len(index), N=8))


def test_loads_stores_and_atomics_are_counted() -> None:
    (launch,) = scatter([4, 1, 1, 4, 4], size=5)
    reads = {"index": Touched(40, 80), "target": Touched(2, 4), "count": Touched(4, 8)}
    writes = {"target": Touched(4, 20), "count": Touched(4, 8)}
    assert launch == Launch("scatter", reads, writes)


@pytest.mark.parametrize("index", [5, -1])
def test_an_access_outside_of_all_arguments_is_seen(index: int) -> None:
    with pytest.raises(InterpreterError, match="1 writes outside of all arguments"):
        scatter([0, index], size=5)


def formula(text: str, symbols: dict[str, int]) -> int:
    """The value of a sum of products that are written without signs: `2 T D b + 4`."""

    def factor(word: str) -> int:
        return symbols[word] if word in symbols else int(word)

    total = 0
    for term in text.split("+") if text.strip() else []:
        product = 1
        for word in term.split():
            product *= factor(word)
        total += product
    return total


def readme_formulas() -> dict[str, tuple[str, str]]:
    table = README[README.index("| launch | reads | writes |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {label: (reads, writes) for label, reads, writes in rows}


def more(step: Step, than: Step) -> Step:
    """What one step reads and writes beyond another."""
    reads = {key: size for key, size in step.reads.items() if key not in than.reads}
    return Step(step.name, reads, {key: size for key, size in step.writes.items() if key not in than.writes})


def documented_steps(s: Shape) -> dict[str, Step]:
    """The steps that the labels of README.md's table mean; I and O are 3 and 5."""
    forward, backward = bounds.route_forward(s), bounds.route_backward(s)
    summed = Options(probabilities=True)
    of_sum = bounds.route_backward(s, summed)
    by_name = {step.name: step for step in bounds.backward(s)}
    return {
        "`route_forward`": forward,
        "with a selection bias": more(bounds.route_forward(s, Options(biased=True)), forward),
        "with a mask": more(bounds.route_forward(s, Options(masked=True)), forward),
        "with a probability sum": more(bounds.route_forward(s, summed), forward),
        "`place_rows`": bounds.place_rows(s, s.C),
        "`gather_rows`": bounds.gather_rows(s, "x"),
        "`grouped_mm` of rows by weights": bounds.rows_by_weights(s, "", 3, 5),
        "`swiglu`": bounds.swiglu(s),
        "`combine_rows`, weighted": bounds.combine_rows(s, "y", weighted=True),
        "`swiglu_backward`": bounds.swiglu_backward(s),
        "`grouped_mm` of rows by rows": bounds.rows_by_rows(s, "", 3, 5),
        "`zero_empty_groups`": bounds.zero_empty_groups(s, "", 3 * 5),
        "`combine_rows`, not weighted": bounds.combine_rows(s, "dx", weighted=False),
        "`route_backward`": backward,
        "with a gradient of log-sum-exp": more(bounds.route_backward(s, Options(logsumexp_gradient=True)), backward),
        "with one of the probability sum": more(of_sum, backward),
        "and with a mask as well": more(bounds.route_backward(s, summed._replace(masked=True)), of_sum),
        "`mm`: dW": by_name["mm dW"],
        "`add`: dx of `route` and `expert_mlp`": by_name["add dx"],
        "`count_rows`, from bare int32 ids": bounds.count_rows(s, s.C),
    }  # fmt: skip


def test_the_readme_has_the_formulas() -> None:
    shape = Shape(T=1009, E=61, K=7, D=103, F=41, b=2, tile=32, Z=5)
    symbols: dict[str, Any] = {name: getattr(shape, name) for name in "TEKDFGNCZb"} | {"I": 3, "O": 5}
    on_paper = {
        label: tuple(sum(side.values()) for side in (step.reads, step.writes))
        for label, step in documented_steps(shape).items()
    }
    written = {label: tuple(formula(text, symbols) for text in row) for label, row in readme_formulas().items()}
    assert written == on_paper


def test_the_readme_has_the_tables_of_times() -> None:
    block = "```text\n" + "\n\n".join(roofline_table(model) for model in MODELS) + "\n```"
    assert block in README, "copy what `make traffic` prints"
    assert f"    {gate_balance()}\n" in README


def test_the_large_model_is_that_of_its_config() -> None:
    config = yaml.safe_load((ROOT / "configs" / "pathmoe_16b.yaml").read_text())
    model, data = config["model"]["config"], config["data"]
    sizes = [model[key] for key in ("num_experts", "num_experts_per_tok", "hidden_size", "moe_intermediate_size")]
    assert [data["micro_batch_size"] * data["sequence_length"], *sizes] == list(MODELS["PathMoE 16B"][:5])


@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_gate_of_more_experts_than_that_waits_for_the_matrix_units(itemsize: int) -> None:
    # So many tokens that the gate itself and what O(N) costs do not matter.
    for num_experts, bound_by_memory in [
        (memory_bound_experts(itemsize), True),
        (memory_bound_experts(itemsize) + 1, False),
    ]:
        step = bounds.route_forward(Shape(10**9, num_experts, 1, 10**9, 1, itemsize, 128))
        seconds = step.reads["x"] / 3.35e12, step.flops / FLOPS_PER_SECOND[itemsize]
        assert (seconds[0] >= seconds[1]) == bound_by_memory


def test_the_command_prints_both_within_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["traffic.py"])
    traffic.main()
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert printed == "\n\n".join([counted_table(), *map(roofline_table, MODELS), gate_balance()]) + "\n"


def test_a_wrong_start_ends_in_one_line() -> None:
    command = [sys.executable, ROOT / "kernels" / "bench" / "traffic.py", "--tokens", "3"]
    ended = subprocess.run(command, capture_output=True, text=True)
    line = "error: unrecognized arguments: --tokens 3; see --help\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)
