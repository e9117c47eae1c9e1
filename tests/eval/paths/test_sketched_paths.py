"""Sketches of whole paths and blocks against exact counts: equal while they fit, else within their errors."""

# Shapes: N tokens, L MoE layers.

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.paths import sketched_paths as module
from pathmoe_eval.paths.path_blocks import BlockCounts, block_concentration
from pathmoe_eval.paths.path_sketch import PathSketch
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.paths.sketched_paths import SketchedPathCounts

SHAPE = {"num_layers": 5, "num_experts": 4}
BLOCKS = (range(2), range(2, 5))


def paths_of(num_tokens, seed=0):
    rng = np.random.default_rng(seed)
    skewed_NL = np.minimum(rng.geometric(0.5, (num_tokens, 5)) - 1, 3)
    return np.where(rng.random((num_tokens, 1)) < 0.4, skewed_NL[:, :1], skewed_NL)


def sketched(*batches):
    counts = SketchedPathCounts(**SHAPE, blocks=BLOCKS)
    for batch in batches:
        counts.update(batch)
    return counts


def exact(path_ids_NL):
    paths, blocks = PathCounts(**SHAPE), BlockCounts(**SHAPE, blocks=BLOCKS)
    paths.update(path_ids_NL)
    blocks.update(path_ids_NL)
    return [block_concentration(paths), *blocks.result()]


FIGURES = ("entropy_bits", "num_paths", "num_tokens", "effective_paths")


@given(st.integers(1, 300), st.integers(0, 99))
def test_few_paths_are_exact(num_tokens, seed):
    path_ids_NL = paths_of(num_tokens, seed)
    result = sketched(path_ids_NL).result()
    for ours, theirs in zip([result.whole, *result.blocks], exact(path_ids_NL), strict=True):
        assert [getattr(ours.entropy, name) for name in FIGURES] == pytest.approx(
            [getattr(theirs, name) for name in FIGURES], rel=1e-12, abs=1e-12
        )
        assert (ours.entropy.entropy_standard_error_bits, ours.entropy.num_paths_standard_error) == (0, 0)
        for name in (
            "first_layer", "num_layers", "ceiling_bits", "entropy_bits_null", "total_correlation_bits",
            "total_correlation_corrected_bits",
        ):  # fmt: skip
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=1e-9)
        ceiling = theirs.ceiling_bits
        assert ours.share_of_ceiling == (pytest.approx(theirs.entropy_bits / ceiling) if ceiling else None)


def test_many_paths_err_as_is_stated(monkeypatch):
    monkeypatch.setattr(module, "PathSketch", functools.partial(PathSketch, num_sampled=60, num_heavy=30))
    scores = []
    for seed in range(40):
        path_ids_NL = paths_of(4000, seed)
        whole = sketched(path_ids_NL).result().whole
        truth = exact(path_ids_NL)[0]
        assert whole.entropy_bits_null == pytest.approx(truth.entropy_bits_null)
        error = whole.entropy.entropy_standard_error_bits
        scores.append((whole.total_correlation_bits - truth.total_correlation_bits) / error)
    assert np.mean(np.square(scores)) == pytest.approx(1, abs=4 * math.sqrt(2 / 40))


@given(st.integers(0, 99), st.data())
def test_batching_and_merging_change_nothing_while_sketches_are_exact(seed, data):
    path_ids_NL = paths_of(100, seed)
    parts = np.split(path_ids_NL, sorted(data.draw(st.lists(st.integers(0, 100), max_size=3))))
    merged = sketched(*parts[::2])
    merged.merge(sketched(*parts[1::2]))
    assert merged.result() == sketched(path_ids_NL).result()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sketched(np.zeros((2, 4), int)), r"path_ids \(4 layers\) must have num_layers \(5\) columns"),
        (lambda: sketched(np.full((2, 5), 4)), r"path_ids \(4\) must be at least 0 and below num_experts \(4\)"),
        (lambda: sketched().result(), r"num_tokens \(0\) must be at least 1"),
        (
            lambda: sketched().merge(SketchedPathCounts(**SHAPE, blocks=[range(5)])),
            r"other.blocks \(\(range\(0, 5\),\)\) must equal blocks",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
