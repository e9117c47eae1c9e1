"""The scale benchmark at tiny sizes: its figures are complete, its tables fit, and its verdicts hold the limits."""

# Shapes: B batch, S sequence.

import sys

import pytest
import scale
import torch
import trace_passes

from pathmoe import PathMoEConfig

WIDTH = 80


def numbers(line):
    return [float(word.replace(",", "")) for word in line.split()]


def test_all_passes_measure_the_first_tokens_and_their_tables_fit():
    figures = scale.trace_figures([2000, 1000])
    assert [*figures] == [*trace_passes.PASSES]
    for rows in figures.values():
        assert [row["num_tokens"] for row in rows] == [1000, 2000]
        assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in rows)
    exact, sketch = figures["exact"], figures["sketch"]
    lines = scale.exact_lines(exact)
    assert [numbers(line)[:2] for line in lines[2:4]] == [[row["num_tokens"], row["num_paths"]] for row in exact]
    lines += (of_sketch := scale.sketch_lines(sketch, exact))
    # so few paths are in the sample whole: no error is made and none stated
    assert all(numbers(line)[2:4] + numbers(line)[5:7] == [0, 0, 0, 0] for line in of_sketch[2:4])
    lines += (of_analysis := scale.analysis_lines(figures["analysis"], figures["sketched"]))
    assert [numbers(line)[0] for line in of_analysis[3:5]] == [1000, 2000]
    assert max(map(len, lines)) <= WIDTH


def test_the_largest_benchmark_fits_too():
    row = {
        "num_tokens": 7_180_000, "num_paths": 5_012_345, "num_paths_standard_error": 8765.4, "entropy_bits": 20.1234,
        "entropy_standard_error_bits": 0.00456, "array_bytes": 12 << 20, "seconds": 123.4, "peak_bytes": 1234 << 20,
    }  # fmt: skip
    lines = scale.exact_lines([row]) + scale.sketch_lines([row], [row | {"num_paths": 5_023_456}])
    lines += (of_analysis := scale.analysis_lines([row], [row | {"seconds": 61.24}]))
    assert max(map(len, lines)) <= WIDTH
    assert numbers(lines[2]) == [7_180_000, 5_012_345, 20.1234, 123.4, 17.19, 1234]
    assert numbers(of_analysis[3]) == [7_180_000, 123.4, 17.19, 1234, 61.2, 8.53, 1234]
    assert of_analysis[4] == "7,180,000 tokens: peak MiB 1234.0, at most 2048: yes"
    assert lines[3] == "7,180,000 tokens: seconds 123.4, at most 60: NO"
    assert lines[4] == "7,180,000 tokens: peak MiB 1234.0, at most 2048: yes"


def test_recording_is_compared_with_the_same_forward_without_it():
    config = PathMoEConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=8,
        num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    tokens_BS = torch.randint(0, 50, (2, 12))
    batch = {"input_ids": tokens_BS, "position_ids": torch.arange(12).expand(2, 12), "shift_labels": tokens_BS}
    figures = scale.recording_figures(config, batch, 3)
    assert [*figures] == ["expert ids", "expert ids, weights, logits"]
    # a share of the time of the same forward, so never below what no time at all would give
    assert all(-1 < lower <= median <= upper for lower, median, upper in figures.values())
    assert max(map(len, scale.recording_lines(figures))) <= WIDTH
    assert scale.recording_lines({"expert ids": (0.01, 0.0612, 0.07)})[1:] == [
        "  expert ids                     +1.0%   +6.1%   +7.0%",
        "expert ids: median % 6.1, at most 5: NO",
    ]


def test_what_is_timed_is_tested_by_files_that_are_there():
    folder = scale.config_folder().parent / "tests" / "eval"
    assert [name for name in scale.TESTED if not (folder / name).exists()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "100", "0"], "error: --tokens (0) must be at least 1"),
        (["--rounds", "1"], "error: --rounds (1) must be at least 2"),
    ],
)
def test_bad_arguments_end_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [scale.__file__, *arguments])
    with pytest.raises(SystemExit, match="2"):
        scale.main()
    printed = capsys.readouterr().err
    assert printed.startswith(message) and printed.count("\n") == 1
