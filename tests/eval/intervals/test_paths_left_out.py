"""Frequencies without a part, against counting what is left."""

# Shapes: N tokens, L layers, P distinct paths, W 64-bit words of a path, C distinct values of a count.

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathmoe_eval.intervals import paths_left_out
from pathmoe_eval.intervals.paths_left_out import PathsLeftOut
from pathmoe_eval.paths.paths import PathCounts


def counted(paths_NL: NDArray[np.int64], num_experts: int) -> PathCounts:
    counts = PathCounts(num_layers=paths_NL.shape[1], num_experts=num_experts)
    counts.update(paths_NL)
    return counts


def frequencies(paths_NL: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    _, counts_P = np.unique(paths_NL, axis=0, return_counts=True)
    sizes_C, paths_C = np.unique(counts_P, return_counts=True)
    return sizes_C.tolist(), paths_C.tolist()


def lists(arrays: tuple[NDArray[Any], ...]) -> tuple[list[int], ...]:
    return tuple(array.tolist() for array in arrays)


@given(st.data())
def test_equals_counting_the_rest(data: st.DataObject) -> None:
    num_layers, num_experts = data.draw(st.sampled_from([(3, 2), (9, 300), (40, 5)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    pool = rng.integers(num_experts, size=(6, num_layers))
    paths_NL = pool[rng.integers(6, size=data.draw(st.integers(2, 60)))]
    is_part_N = rng.random(len(paths_NL)) < data.draw(st.floats(0, 0.9))
    is_part_N[0] = False
    left_out = PathsLeftOut(counted(paths_NL, num_experts))
    for is_out_N in (is_part_N, np.zeros_like(is_part_N)):  # nothing that was left out stays out
        found = left_out.frequencies(counted(paths_NL[is_out_N], num_experts))
        assert lists(found) == frequencies(paths_NL[~is_out_N])


def test_paths_of_one_mix_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths_left_out, "mix", lambda keys_WN: np.zeros(keys_WN.shape[1], dtype=np.uint64))
    paths_NL = np.random.default_rng(0).integers(300, size=(30, 9)).repeat(2, axis=0)
    found = PathsLeftOut(counted(paths_NL, 300)).frequencies(counted(paths_NL[:21], 300))
    assert lists(found) == frequencies(paths_NL[21:])
