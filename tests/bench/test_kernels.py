"""The whole of `make bench-kernels` on a CPU, at small shapes, through the code that a GPU runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from pathmoe.bench import kernels
from pathmoe.bench.kernel_ops import kernel_ops, least_bytes
from pathmoe.bench.kernels import (
    Setting,
    driver_version,
    one_line_for_too_little_memory,
    refuse_the_interpreter,
    results_of,
    write,
)
from pathmoe.bench.layer import LayerShape, layer_shape
from pathmoe.bench.paired import wall_seconds

CPU = torch.device("cpu")
SHAPES = {
    "one": layer_shape(24, 32, 16, 4, 2),
    "another": layer_shape(20, 16, 8, 8, 3, norm_topk_prob=False),
}
ROUNDS = 3

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="the row kernels are Triton's")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a wall clock."""
    folder = tmp_path_factory.mktemp("out")
    setting = Setting(CPU, torch.bfloat16, ROUNDS, wall_seconds, copied_bytes=1 << 12, matmul_size=16)
    write(results_of(SHAPES, setting), folder)
    return folder


@pytest.fixture(scope="module")
def results(written: Path) -> dict[str, Any]:
    return json.loads((written / "kernels.json").read_text())


def layer_flops(shape: LayerShape) -> int:
    T, D, F, E, K = shape.sizes()
    return 2 * T * (D * E + K * 3 * D * F)


@needs_triton
def test_every_call_has_a_row_whose_figures_fit_together(results: dict[str, Any]) -> None:
    assert [shape["name"] for shape in results["shapes"]] == list(SHAPES)
    for got, shape in zip(results["shapes"], SHAPES.values(), strict=True):
        amounts = {"copy": 2 << 12, "matmul": 2 * 16**3} | least_bytes(shape, itemsize=2)
        flops = {"expert_mlp": 6 * shape.sizes()[0] * shape.sizes()[4] * shape.sizes()[1] * shape.sizes()[2]}
        flops["expert_mlp, fwd+bwd"] = 3 * flops["expert_mlp"]
        for candidate in ("ours", "eager", "grouped_mm"):
            flops[f"layer forward, {candidate}"] = layer_flops(shape)
            flops[f"layer fwd+bwd, {candidate}"] = 3 * layer_flops(shape)
        rows = {row["name"]: row for row in got["rows"]}
        assert len(rows) == len(got["rows"])
        assert rows.keys() == (amounts | flops).keys()
        for name, row in rows.items():
            lower, median, upper = row["milliseconds"]
            assert 0 < lower <= median <= upper
            bound, unit = ("matmul", "TFLOP/s") if name in flops or name == "matmul" else ("copy", "GB/s")
            assert (row["bound"], row["unit"]) == (bound, unit)
            amount = (amounts | flops)[name] / {"GB/s": 1e9, "TFLOP/s": 1e12}[unit]
            assert row["rate"] == pytest.approx(amount / (median / 1e3))
            assert row["fraction"] == pytest.approx(row["rate"] / rows[bound]["rate"])


@needs_triton
def test_our_layer_is_held_against_each_peer_and_the_targets_are_judged(results: dict[str, Any]) -> None:
    for shape in results["shapes"]:
        assert shape["sizes"] == SHAPES[shape["name"]].described()
        assert shape["busiest expert over mean"] >= 1
        compared = [(speed["layer_pass"], speed["peer"]) for speed in shape["speeds"]]
        assert compared == [(p, peer) for p in ("forward", "fwd+bwd") for peer in ("eager", "grouped_mm")]
        for layer_pass in ("forward", "fwd+bwd"):
            assert sum(speed["is_best"] for speed in shape["speeds"] if speed["layer_pass"] == layer_pass) == 1
        assert [(target["name"], target["target"]) for target in shape["targets"]] == [
            ("route, of the copy bandwidth", 0.8),
            ("combine, of the copy bandwidth", 0.8),
            ("layer fwd+bwd, speed over grouped_mm", 1.3),
            ("layer fwd+bwd, speed over the best peer", 1.0),
        ]
        fractions = {row["name"]: row["fraction"] for row in shape["rows"]}
        assert [target["figure"] for target in shape["targets"][:2]] == [fractions["route"], fractions["combine"]]
        assert all(target["reached"] == (target["figure"] >= target["target"]) for target in shape["targets"])
        assert list(shape["left out"]) == ["sonicmoe"]


@needs_triton
def test_what_made_the_figures_is_named(results: dict[str, Any]) -> None:
    made_by = results["made by"]
    assert made_by["torch"] == torch.__version__
    assert (made_by["dtype"], made_by["rounds"]) == ("torch.bfloat16", ROUNDS)
    names = {"device", "driver", "cuda", "triton", "transformers", "kernels", "python", "platform"}
    assert names | {"git_commit", "git_dirty"} <= made_by.keys()


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each Markdown table, head first, without the line below it."""
    found: list[list[list[str]]] = [[]]
    for line in page.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[cells for i, cells in enumerate(table) if i != 1] for table in found if table]


@needs_triton
def test_the_page_says_what_the_json_says(written: Path, results: dict[str, Any]) -> None:
    made_by, *rest = tables((written / "kernels.md").read_text())
    assert made_by == [[key, str(value)] for key, value in results["made by"].items()]
    assert len(rest) == 3 * len(results["shapes"])
    for i, shape in enumerate(results["shapes"]):
        rows, speeds, targets = (table[1:] for table in rest[3 * i : 3 * i + 3])
        shown = []
        for name, milliseconds, quartiles, rate, fraction in rows:
            number, unit = rate.split()
            numbers = [milliseconds, *quartiles.split(" - "), number]
            shown.append((name, unit, [float(x) for x in numbers], float(fraction.rstrip("%")) / 100))
        for (name, unit, numbers, fraction), row in zip(shown, shape["rows"], strict=True):
            lower, median, upper = row["milliseconds"]
            assert (name, unit) == (row["name"], row["unit"])
            assert numbers == pytest.approx([median, lower, upper, row["rate"]], rel=1e-3)
            assert fraction == pytest.approx(row["fraction"], abs=6e-4)
        for (name, median, _, best), speed in zip(speeds, shape["speeds"], strict=True):
            assert name == f"layer {speed['layer_pass']}, {speed['peer']}"
            assert float(median) == pytest.approx(speed["ratio"][1], rel=1e-3)
            assert bool(best) == speed["is_best"]
        for (name, least, figure, reached), target in zip(targets, shape["targets"], strict=True):
            assert (name, float(least), reached == "reached") == (target["name"], target["target"], target["reached"])
            assert float(figure) == pytest.approx(target["figure"], rel=1e-3)
        assert f"sonicmoe was not measured: {shape['left out']['sonicmoe']}" in (written / "kernels.md").read_text()


@needs_triton
def test_calls_take_turns_in_the_rounds_that_are_asked_for() -> None:
    calls: list[Callable[[], object]] = []

    def seconds_of(call: Callable[[], object]) -> float:
        calls.append(call)
        return 1.0

    shape = SHAPES["one"]
    results_of({"one": shape}, Setting(CPU, torch.float32, 4, seconds_of, 1 << 12, 16), peers=("grouped_mm",))
    num_calls = 2 + len(kernel_ops(shape, CPU, torch.float32)) + 2 * 2
    # Two rounds more warm up.
    assert len(calls) == 6 * num_calls and len(set(map(id, calls))) == num_calls
    assert calls[:num_calls] == calls[num_calls : 2 * num_calls][::-1]


def test_too_little_memory_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), one_line_for_too_little_memory(32768):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
    line = capsys.readouterr().err
    assert line == "error: --tokens (32768) takes more memory than is free on the device; lower it, or free some\n"


@pytest.mark.parametrize(("printed", "version"), [("570.1\n570.1\n", "570.1"), ("", None)])
def test_the_driver_is_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, version: str | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{printed}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert driver_version() == version


def test_without_nvidia_smi_the_driver_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_version() is None


@needs_triton
def test_the_interpreter_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        refuse_the_interpreter()
    line = capsys.readouterr().err
    assert line.startswith("error: TRITON_INTERPRET (1) must not be set") and line.count("\n") == 1


def test_without_a_gpu_it_says_why_and_gives_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "pathmoe.bench.kernels", "--out", str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"no figures: torch {torch.__version__} finds no CUDA device\n"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--tokens", "0", "must be at least 1; raise it"),
        ("--rounds", "1", "must be at least 2; raise it"),
        ("--out", __file__, "must be a folder, and is a file; choose another"),
    ],
)
def test_bad_flags_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str, value: str, words: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels", flag, value])
    with pytest.raises(SystemExit, match="2"):
        kernels.main()
    assert capsys.readouterr().err == f"error: {flag} ({value}) {words}\n"
