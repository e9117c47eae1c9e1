import pytest

from pathmoe.bench.kernel_ops import Work
from pathmoe.bench.kernel_report import Row, Speed, markdown, rows_of, speeds_of, targets_of


def nothing() -> None:
    pass


WORKS = {
    "copy": Work(nothing, "copy", 8 * 10**9),
    "matmul": Work(nothing, "matmul", 4 * 10**12),
    "route": Work(nothing, "copy", 10**9),
    "experts": Work(nothing, "matmul", 10**12),
}
SECONDS = {
    "copy": [0.004, 0.004, 0.004],  # 2,000 GB/s
    "matmul": [0.01, 0.01, 0.01],  # 400 TFLOP/s
    "route": [0.002, 0.0005, 0.001],  # 1,000 GB/s at the median
    "experts": [0.005, 0.005, 0.02],  # 200 TFLOP/s at the median
}


def test_rates_and_fractions_by_hand() -> None:
    rows = {row.name: row for row in rows_of(WORKS, SECONDS)}
    assert rows["copy"] == Row("copy", pytest.approx((4, 4, 4)), pytest.approx(2000), "GB/s", 1.0, "copy")
    assert rows["matmul"] == Row("matmul", pytest.approx((10, 10, 10)), pytest.approx(400), "TFLOP/s", 1.0, "matmul")
    # Quartiles of three values are these values.
    expected = Row("route", pytest.approx((0.5, 1, 2)), pytest.approx(1000), "GB/s", pytest.approx(0.5), "copy")
    assert rows["route"] == expected
    assert rows["experts"].milliseconds == pytest.approx((5, 5, 20))
    assert (rows["experts"].rate, rows["experts"].fraction) == pytest.approx((200, 0.5))


LAYER_SECONDS = {
    "layer both, ours": [1.0, 2.0, 4.0],
    "layer both, grouped_mm": [1.5, 3.0, 6.0],  # 1.5 times ours in every round
    "layer both, eager": [6.0, 6.0, 4.0],
    "layer both, sonicmoe": [1.0, 2.2, 4.0],
}


def test_speeds_are_ratios_of_rounds_and_the_best_peer_has_the_shortest_median() -> None:
    speeds = {speed.peer: speed for speed in speeds_of(LAYER_SECONDS, ("both",), ["grouped_mm", "eager", "sonicmoe"])}
    assert speeds["grouped_mm"] == Speed("both", "grouped_mm", pytest.approx((1.5, 1.5, 1.5)), False)
    assert speeds["eager"] == Speed("both", "eager", pytest.approx((1.0, 3.0, 6.0)), False)
    assert speeds["sonicmoe"] == Speed("both", "sonicmoe", pytest.approx((1.0, 1.0, 1.1)), True)


def targets(route: float, combine: float, over_grouped: float, over_best: float) -> list[tuple[float, bool]]:
    rows = [Row(name, (1, 1, 1), 1, "GB/s", value, "copy") for name, value in [("route", route), ("combine", combine)]]
    speeds = [
        Speed("both", "grouped_mm", (0.1, over_grouped, 9), False),
        Speed("both", "sonicmoe", (0.1, over_best, 9), True),
        Speed("forward", "grouped_mm", (7, 7, 7), True),
    ]
    return [(target.figure, target.reached) for target in targets_of(rows, speeds, "both")]


def test_targets_are_reached_from_the_figure_on() -> None:
    assert targets(0.8, 0.8, 1.3, 1.0) == [(0.8, True), (0.8, True), (1.3, True), (1.0, True)]
    assert targets(0.79, 0.9, 1.29, 0.99) == [(0.79, False), (0.9, True), (1.29, False), (0.99, False)]


def test_where_grouped_mm_is_the_best_peer_it_is_held_to_both_targets() -> None:
    rows = [Row(name, (1, 1, 1), 1, "GB/s", 0.5, "copy") for name in ("route", "combine")]
    (*_, over_grouped, over_best) = targets_of(rows, [Speed("both", "grouped_mm", (1, 1.2, 2), True)], "both")
    assert (over_grouped.figure, over_grouped.target, over_grouped.reached) == (1.2, 1.3, False)
    assert (over_best.figure, over_best.target, over_best.reached) == (1.2, 1.0, True)


def test_the_page_is_markdown_with_aligned_columns() -> None:
    rows, speeds = rows_of(WORKS, SECONDS), [Speed("fwd+bwd", "grouped_mm", (1.25, 1.333333, 1.5), True)]
    shape = {
        "name": "OLMoE",
        "sizes": "T=1",
        "busiest expert over mean": 1.25,
        "rows": [row._asdict() for row in rows],
        "speeds": [speed._asdict() for speed in speeds],
        "targets": [{"name": "combine", "target": 0.8, "figure": 0.81234, "reached": True}],
        "left out": {"sonicmoe": "it is not installed"},
    }
    page = markdown({"made by": {"device": "some GPU", "driver": None}, "method": ["How."], "shapes": [shape]})
    assert (
        page
        == """# Kernels

| device | some GPU |
| ------ | -------- |
| driver | None     |

How.

## OLMoE: T=1

busiest expert over mean: 1.25

| call    | ms  | quartiles | rate        | fraction |
| ------- | --- | --------- | ----------- | -------- |
| copy    | 4   | 4 - 4     | 2000 GB/s   | 100.0%   |
| matmul  | 10  | 10 - 10   | 400 TFLOP/s | 100.0%   |
| route   | 1   | 0.5 - 2   | 1000 GB/s   | 50.0%    |
| experts | 5   | 5 - 20    | 200 TFLOP/s | 50.0%    |

| our speed over            | times | quartiles  |           |
| ------------------------- | ----- | ---------- | --------- |
| layer fwd+bwd, grouped_mm | 1.333 | 1.25 - 1.5 | best peer |

| target  | at least | figure |         |
| ------- | -------- | ------ | ------- |
| combine | 0.8      | 0.8123 | reached |

sonicmoe was not measured: it is not installed
"""
    )
