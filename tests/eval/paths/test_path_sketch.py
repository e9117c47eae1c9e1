"""The sketch against exact counts: equal while small, within its stated errors and bounds when it is full."""

# Shapes: N tokens, L MoE layers, K experts of a set, P paths.

import json
import math
import tracemalloc
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.paths import path_sketch
from pathmoe_eval.paths.coverage import coverage
from pathmoe_eval.paths.path_sketch import PathSketch
from pathmoe_eval.paths.paths import PathCounts


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_sketch, "_BLOCK_TOKENS", 256)
        yield


def zipf_paths(num_tokens, seed=0, num_layers=20):
    """Paths with a head and a long tail; base paths are the same for every seed."""
    rng = np.random.default_rng(seed)
    base_PL = np.random.default_rng(99).integers(0, 16, (1000, num_layers), dtype=np.uint8)
    rank_N = (rng.pareto(0.8, num_tokens).astype(np.int64)).clip(max=999)
    path_ids_NL = base_PL[rank_N]
    changed_NL = rng.random((num_tokens, num_layers)) < 0.05 * rng.random((num_tokens, 1))
    path_ids_NL[changed_NL] = rng.integers(0, 16, changed_NL.sum())
    return path_ids_NL


def exact(path_ids_NL):
    counts = PathCounts(num_layers=path_ids_NL.shape[1], num_experts=16)
    counts.update(path_ids_NL)
    return counts


def sketched(path_ids_NL, num_batches=1, **sizes):
    sketch = PathSketch(num_layers=path_ids_NL.shape[1], num_experts=16, **sizes)
    for batch_NL in np.array_split(path_ids_NL, num_batches):
        sketch.update(batch_NL)
    return sketch


@given(st.integers(1, 1500), st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([1, 40, 2000]))
def test_is_exact_while_the_sample_holds_every_path(num_tokens, seed, num_batches, num_heavy):
    path_ids_NL = zipf_paths(num_tokens, seed, num_layers=5)
    result = sketched(path_ids_NL, num_batches, num_sampled=1500, num_heavy=num_heavy).result()
    expected = exact(path_ids_NL)
    assert (result.num_tokens, result.num_paths) == (num_tokens, expected.result().num_paths)
    assert result.entropy_bits == pytest.approx(expected.result().entropy_bits, abs=1e-12)
    assert result.share == pytest.approx(coverage(*expected.frequencies()).share, rel=1e-12)
    assert (result.sampling_probability, result.entropy_standard_error_bits, result.missed_share) == (1, 0, 0)


@given(st.integers(1, 9), st.integers(1, 50), st.integers(1, 50), st.data())
def test_batching_does_not_change_one_bit(seed, num_sampled, num_heavy, data):
    path_ids_NL = zipf_paths(1500, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, 1500), max_size=6)))
    sketch = sketched(path_ids_NL[:0], num_sampled=num_sampled, num_heavy=num_heavy)
    for batch_NL in np.split(path_ids_NL, cuts):
        sketch.update(batch_NL)
        if data.draw(st.booleans()):
            sketch.merge(sketched(path_ids_NL[:0], num_sampled=num_sampled, num_heavy=num_heavy))
            sketch.most_frequent(3)
    whole = sketched(path_ids_NL, num_sampled=num_sampled, num_heavy=num_heavy)
    assert sketch.result() == whole.result()
    assert [x.tolist() for x in sketch.most_frequent(9)] == [x.tolist() for x in whole.most_frequent(9)]


@given(st.integers(1, 9), st.permutations(range(5)))
def test_the_sample_does_not_depend_on_order_or_merging(seed, order):
    parts = np.array_split(zipf_paths(2000, seed), 5)
    merged = sketched(parts[order[0]], num_sampled=100)
    for part in order[1:]:
        merged.merge(sketched(parts[part], num_sampled=100))
    whole = sketched(np.concatenate(parts), num_sampled=100)._absorbed()
    merged = merged._absorbed()
    assert merged._lowest_left_out == whole._lowest_left_out
    assert merged._sampled_WP.tolist() == whole._sampled_WP.tolist()
    assert merged._sampled_counts_P.tolist() == whole._sampled_counts_P.tolist()


@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 5))
def test_counts_of_the_table_are_within_their_bounds(seed, num_heavy, num_merged):
    path_ids_NL = zipf_paths(3000, seed)
    sketches = [sketched(part, num_heavy=num_heavy) for part in np.array_split(path_ids_NL, num_merged)]
    for other in sketches[1:]:
        sketches[0].merge(other)
    truth = Counter(map(tuple, path_ids_NL.tolist()))
    paths_PL, counts_P, missed_P = sketches[0].most_frequent(num_heavy)
    found = dict(zip(map(tuple, paths_PL.tolist()), counts_P.tolist(), strict=True))
    assert len(found) <= num_heavy
    for path, missed in zip(map(tuple, paths_PL.tolist()), missed_P.tolist(), strict=True):
        assert found[path] <= truth[path] <= found[path] + missed
    bound = 3000 / (num_heavy + 1)
    assert max(missed_P.tolist(), default=0) <= bound
    assert {path for path, count in truth.items() if count > bound} <= found.keys()


def relabelled(path_ids_NL, seed):
    """The same paths under other names, so that others are sampled."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(16)[column] for column in path_ids_NL.T], axis=1)


def test_errors_are_as_stated():
    path_ids_NL = zipf_paths(40_000)
    expected = exact(path_ids_NL)
    truth = np.array(
        [expected.result().num_paths, expected.result().entropy_bits, *coverage(*expected.frequencies()).share]
    )
    runs, errors = [], []
    for seed in range(40):
        result = sketched(relabelled(path_ids_NL, seed), num_sampled=1000, num_heavy=500).result()
        assert result.missed_share < 0.01
        runs.append([result.num_paths, result.entropy_bits, *result.share])
        errors.append(
            [result.num_paths_standard_error, result.entropy_standard_error_bits, *result.share_standard_error]
        )
    rms, stated = np.sqrt(np.mean((np.array(runs) - truth) ** 2, axis=0)), np.mean(errors, axis=0)
    # the spread of 40 runs is known to 11%; paths that came before their entry into the table are a bias beside it
    assert rms[:2] == pytest.approx(stated[:2], rel=0.4)
    assert np.all(rms[2:] <= 1.4 * stated[2:] + 0.002)
    assert stated[1] < 0.1


def test_a_sample_alone_would_not_do():
    path_ids_NL = zipf_paths(40_000)
    alone = sketched(path_ids_NL, num_sampled=1000, num_heavy=1).result()
    both = sketched(path_ids_NL, num_sampled=1000, num_heavy=500).result()
    assert alone.entropy_standard_error_bits > 10 * both.entropy_standard_error_bits


def test_paths_that_become_frequent_late_are_found():
    early_NL, late_NL = zipf_paths(20_000), np.full((5000, 20), 3, dtype=np.uint8)
    sketch = sketched(np.concatenate([early_NL, late_NL]), num_sampled=500, num_heavy=200)
    paths_PL, counts_P, missed_P = sketch.most_frequent(100)
    at = paths_PL.tolist().index([3] * 20)
    assert counts_P[at] == 5000
    assert 0 < missed_P[at] <= 20_000 / 201


def test_memory_stays_fixed():
    sketch = sketched(zipf_paths(4000), num_sampled=500, num_heavy=200)
    held = []
    tracemalloc.start()
    for seed in range(1, 81):
        sketch.update(zipf_paths(1000, seed))
        if seed % 40 == 0:
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # two words and a count a sampled path, two counts a heavy one, and a block of 256 tokens that waits
    assert max(held) < 2 * (500 * 24 + 200 * 32 + 256 * 16)
    assert held[1] < 1.2 * held[0]


def test_sets_are_sketched_like_paths():
    rng = np.random.default_rng(0)
    expert_ids_NLK = rng.random((6, 4, 16)).argsort(axis=2)[rng.integers(0, 6, 300)][:, :, :3]
    sketch, counts = (
        PathSketch(num_layers=4, num_experts=16, set_size=3),
        PathCounts(num_layers=4, num_experts=16, set_size=3),
    )
    for accumulator in (sketch, counts):
        accumulator.update(rng.permuted(expert_ids_NLK, axis=2))
    assert [x.tolist() for x in sketch.most_frequent(9)[:2]] == [x.tolist() for x in counts.most_frequent(9)]
    assert sketch.result().entropy_bits == pytest.approx(counts.result().entropy_bits)


def test_results_are_plain_finite_numbers():
    for sizes in ({}, {"num_sampled": 1, "num_heavy": 1}):
        for num_tokens in (1, 2, 2000):
            result = sketched(zipf_paths(num_tokens), **sizes).result()
            json.dumps(asdict(result), allow_nan=False)
            assert result.ceiling_bits == math.log2(num_tokens)


def empty(**arguments):
    return PathSketch(**{"num_layers": 2, "num_experts": 4, **arguments})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: empty().result(), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: empty(num_layers=0), r"num_layers \(0\) must be at least 1"),
        (lambda: empty(num_sampled=0), r"num_sampled \(0\) must be at least 1"),
        (lambda: empty(num_heavy=0), r"num_heavy \(0\) must be at least 1"),
        (lambda: empty().update(np.zeros((1, 3), dtype=int)), r"path_ids \(3 layers\) must have num_layers \(2\)"),
        (lambda: empty().merge(empty(num_layers=3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
        (lambda: empty().merge(empty(set_size=2)), r"other.set_size \(2\) must equal set_size \(1\)"),
        (lambda: empty().merge(empty(num_heavy=2)), r"other.num_heavy \(2\) must equal num_heavy"),
        (lambda: empty().merge(empty(num_sampled=2)), r"other.num_sampled \(2\) must equal num_sampled"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
