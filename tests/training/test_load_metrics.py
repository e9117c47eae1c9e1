"""Balance figures of the experts' load, against their definitions and extremes."""

# Shapes: L layers, E experts.

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathmoe.training.load_metrics import load_metrics

loads = st.integers(1, 5).flatmap(
    lambda experts: st.lists(
        st.lists(st.integers(0, 10**12), min_size=experts, max_size=experts).filter(any), min_size=1, max_size=4
    )
)


@given(loads)
def test_equals_the_definitions(load: list[list[int]]) -> None:
    layers = tuple(range(0, 3 * len(load), 3))
    metrics = load_metrics(torch.tensor(load), layers)
    of_layers: dict[str, list[float]] = {"max_over_mean": [], "dead_experts": [], "entropy_bits": []}
    for layer, counts in zip(layers, load, strict=True):
        shares = [count / sum(counts) for count in counts]
        expected = {
            "max_over_mean": max(counts) * len(counts) / sum(counts),
            "dead_experts": counts.count(0),
            "entropy_bits": sum(share * math.log2(1 / share) for share in shares if share),
        }
        for name, value in expected.items():
            assert metrics.pop(f"load/layer_{layer:02d}/{name}") == pytest.approx(value, rel=1e-12, abs=1e-12)
            of_layers[name].append(value)
    for name, values in of_layers.items():
        assert metrics.pop(f"load/{name}") == pytest.approx(sum(values) / len(values), rel=1e-12, abs=1e-12)
    assert not metrics


def test_extremes() -> None:
    metrics = load_metrics(torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [0, 0, 0, 0]]), (0, 1, 12))
    assert {type(value) for value in metrics.values()} == {float}, "loggers want plain numbers"
    balanced, collapsed, empty = ("load/layer_00/", "load/layer_01/", "load/layer_12/")
    names = ("max_over_mean", "dead_experts", "entropy_bits")
    assert [metrics[balanced + name] for name in names] == [1, 0, 2]
    assert [metrics[collapsed + name] for name in names] == [4, 3, 0]
    assert [metrics[empty + name] for name in names] == [0, 4, 0], "no token at all is no division by zero"
