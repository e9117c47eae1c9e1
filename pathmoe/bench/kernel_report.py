"""The figures of `make bench-kernels`: rates and fractions from seconds, targets, and a Markdown page of them."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pathmoe.bench.kernel_ops import UNITS, Work
from pathmoe.bench.paired import quartiles, ratio

Quartiles = tuple[float, float, float]

BANDWIDTH_TARGET = 0.8
"""Of the copy's bandwidth, for the gate and the combine."""
SPEED_TARGETS = {"grouped_mm": 1.3, "the best peer": 1.0}
"""How many times as fast as these a layer's forward and backward is to be."""


class Row(NamedTuple):
    """One call's figures."""

    name: str
    milliseconds: Quartiles
    rate: float
    """At the median time, in `unit`."""
    unit: str
    fraction: float
    """Of the rate of `bound` in the same rounds."""
    bound: str


class Speed(NamedTuple):
    """How many times as fast as a peer's our layer is, round by round."""

    layer_pass: str
    peer: str
    ratio: Quartiles
    is_best: bool
    """Whether no other peer's median time is shorter."""


class Target(NamedTuple):
    """A figure beside what it should be at least."""

    name: str
    figure: float
    target: float
    reached: bool


def layer_call(layer_pass: str, candidate: str) -> str:
    """The name of a layer's call."""
    return f"layer {layer_pass}, {candidate}"


def rows_of(works: Mapping[str, Work], seconds: Mapping[str, list[float]]) -> list[Row]:
    """Rates and fractions of calls, among which are the two of `UNITS`."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {name: work.amount / medians[name] for name, work in works.items()}
    rows = []
    for name, work in works.items():
        unit, scale = UNITS[work.bound]
        lower, median, upper = (1e3 * value for value in quartiles(seconds[name]))
        fraction = rates[name] / rates[work.bound]
        rows.append(Row(name, (lower, median, upper), rates[name] / scale, unit, fraction, work.bound))
    return rows


def speeds_of(seconds: Mapping[str, list[float]], passes: tuple[str, ...], peers: list[str]) -> list[Speed]:
    """Of each pass of a layer over each peer's."""
    speeds = []
    for layer_pass in passes:
        medians = {peer: statistics.median(seconds[layer_call(layer_pass, peer)]) for peer in peers}
        best = min(medians, key=lambda peer: medians[peer])
        for peer in peers:
            over_peer = ratio(seconds, layer_call(layer_pass, peer), layer_call(layer_pass, "ours"))
            speeds.append(Speed(layer_pass, peer, over_peer, peer == best))
    return speeds


def targets_of(rows: list[Row], speeds: list[Speed], layer_pass: str) -> list[Target]:
    """What the gate, the combine and `layer_pass` of the whole layer have reached."""
    fractions = {row.name: row.fraction for row in rows}
    medians = {speed.peer: speed.ratio[1] for speed in speeds if speed.layer_pass == layer_pass}
    medians["the best peer"] = next(
        speed.ratio[1] for speed in speeds if speed.layer_pass == layer_pass and speed.is_best
    )
    figures = [(f"{op}, of the copy bandwidth", fractions[op], BANDWIDTH_TARGET) for op in ("route", "combine")]
    figures += [
        (f"layer {layer_pass}, speed over {peer}", medians[peer], least) for peer, least in SPEED_TARGETS.items()
    ]
    return [Target(name, figure, target, figure >= target) for name, figure, target in figures]


def markdown(results: Mapping[str, Any]) -> str:
    """All of `results`, as `pathmoe.bench.kernels` gathers and writes them in JSON."""
    lines = ["# Kernels", "", *_table([(key, str(value)) for key, value in results["made by"].items()])]
    lines += ["", *results["method"]]
    for shape in results["shapes"]:
        lines += ["", *_shape_lines(shape)]
    return "\n".join(lines) + "\n"


def _shape_lines(shape: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {shape['name']}: {shape['sizes']}"
    yield ""
    yield f"busiest expert over mean: {shape['busiest expert over mean']:.4g}"
    for cells in (_row_cells(shape["rows"]), _speed_cells(shape["speeds"]), _target_cells(shape["targets"])):
        yield ""
        yield from _table(list(cells))
    for peer, reason in shape["left out"].items():
        yield ""
        yield f"{peer} was not measured: {reason}"


def _row_cells(rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "call", "ms", "quartiles", "rate", "fraction"
    for row in rows:
        lower, median, upper = row["milliseconds"]
        rate = f"{row['rate']:.4g} {row['unit']}"
        yield row["name"], f"{median:.4g}", f"{lower:.4g} - {upper:.4g}", rate, f"{row['fraction']:.1%}"


def _speed_cells(speeds: list[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "our speed over", "times", "quartiles", ""
    for speed in speeds:
        lower, median, upper = speed["ratio"]
        name, note = layer_call(speed["layer_pass"], speed["peer"]), "best peer" if speed["is_best"] else ""
        yield name, f"{median:.4g}", f"{lower:.4g} - {upper:.4g}", note


def _target_cells(targets: list[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "target", "at least", "figure", ""
    for target in targets:
        reached = "reached" if target["reached"] else "not reached"
        yield target["name"], f"{target['target']:.4g}", f"{target['figure']:.4g}", reached


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table whose columns are aligned; the first row is the head."""
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if i == 0:
            yield "| " + " | ".join("-" * width for width in widths) + " |"
