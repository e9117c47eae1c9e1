"""Counts of (path, class) pairs against a Counter over tuples, and the invariances of a count."""

# Shapes: N tokens, L layers, P paths, C classes.

import tracemalloc
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.classes.path_class_counts import PathClassCounts


@st.composite
def cases(draw):
    num_experts = draw(st.sampled_from([1, 2, 3, 16, 17, 256, 65536, 1 << 32]))
    # 24 layers of 16 experts leave room for the class in the second word; 3 of 65536 need the whole of the first
    shape = draw(st.tuples(st.integers(0, 30), st.sampled_from([1, 2, 3, 4, 13, 24])))
    ids = st.integers(0, num_experts - 1)
    path_ids_NL = draw(hnp.arrays(np.int64, shape, elements=ids, fill=ids))
    class_ids_N = draw(hnp.arrays(np.int64, shape[0], elements=st.sampled_from([0, 1, 2, 65535])))
    return num_experts, path_ids_NL, class_ids_N


def counted(num_experts, path_ids_NL, class_ids_N):
    counts = PathClassCounts(num_layers=path_ids_NL.shape[1], num_experts=num_experts)
    counts.update(path_ids_NL, class_ids_N)
    return counts


def brute_force(path_ids_NL, class_ids_N):
    """For each path, in order, its counts by class."""
    pairs = Counter(zip(map(tuple, path_ids_NL.tolist()), class_ids_N.tolist(), strict=True))
    by_path = groupby(sorted(pairs.items()), key=lambda item: item[0][0])
    return {path: [(class_id, count) for (_, class_id), count in items] for path, items in by_path}


def rows(table):
    pairs = list(zip(table.class_ids_J.tolist(), table.counts_J.tolist(), strict=True))
    stops = [*table.starts_P[1:].tolist(), len(pairs)]
    return [pairs[start:stop] for start, stop in zip(table.starts_P.tolist(), stops, strict=False)]


def same(table, other):
    return all(
        np.array_equal(ours, theirs) for ours, theirs in zip(vars(table).values(), vars(other).values(), strict=True)
    )


@given(cases())
def test_equals_brute_force(case):
    num_experts, path_ids_NL, class_ids_N = case
    expected = brute_force(path_ids_NL, class_ids_N)
    table = counted(num_experts, path_ids_NL, class_ids_N).table()
    assert rows(table) == list(expected.values())
    assert table.path_counts_P.tolist() == [sum(count for _, count in row) for row in expected.values()]
    assert table.class_counts_C.tolist() == [count for _, count in sorted(Counter(class_ids_N.tolist()).items())]


@given(cases(), st.integers(1, 5))
def test_most_frequent_paths_equal_brute_force(case, num_paths):
    num_experts, path_ids_NL, class_ids_N = case
    expected = sorted(Counter(map(tuple, path_ids_NL.tolist())).items(), key=lambda item: (-item[1], item[0]))
    found = counted(num_experts, path_ids_NL, class_ids_N).most_frequent(num_paths)
    paths = list(map(tuple, found.paths_PL.tolist()))
    assert list(zip(paths, found.counts_P.tolist(), strict=True)) == expected[:num_paths]
    assert found.num_tokens == len(path_ids_NL)


@given(cases(), st.data())
def test_batching_order_and_merging_change_nothing(count_in_parts, case, data):
    num_experts, path_ids_NL, class_ids_N = case
    shape = {"num_layers": path_ids_NL.shape[1], "num_experts": num_experts}
    parts = count_in_parts(lambda: PathClassCounts(**shape), data, path_ids_NL, class_ids_N)
    assert same(parts.table(), counted(*case).table())
    assert same(parts.table(), parts.table())


def test_many_compactions_equal_one_pass(monkeypatch):
    monkeypatch.setattr("pathmoe_eval.paths.path_keys._MIN_PENDING_KEYS", 8)
    rng = np.random.default_rng(1)
    path_ids_NL, class_ids_N = (
        rng.integers(0, 16, (4000, 24)) // rng.integers(1, 17, (4000, 1)),
        rng.integers(0, 5, 4000),
    )
    counts = PathClassCounts(num_layers=24, num_experts=16)
    for batch_N in np.array_split(np.arange(4000), 300):
        counts.update(path_ids_NL[batch_N], class_ids_N[batch_N])
    assert same(counts.table(), counted(16, path_ids_NL, class_ids_N).table())


@given(cases(), st.data())
def test_parts_of_paths_are_those_of_the_tokens(case, data):
    num_experts, path_ids_NL, class_ids_N = case
    first = data.draw(st.integers(0, path_ids_NL.shape[1] - 1))
    stop = data.draw(st.integers(first + 1, path_ids_NL.shape[1]))
    part = counted(num_experts, path_ids_NL, class_ids_N).between(first, stop)
    assert same(part.table(), counted(num_experts, path_ids_NL[:, first:stop], class_ids_N).table())


@given(cases(), st.data())
def test_selected_paths_keep_their_counts(case, data):
    table = counted(*case).table()
    keep_P = data.draw(hnp.arrays(np.bool_, len(table.starts_P)))
    assert rows(table.select(keep_P)) == [row for row, kept in zip(rows(table), keep_P, strict=True) if kept]


@pytest.mark.parametrize(
    ("num_experts", "layers"), [(2, 48), (2, 49), (2, 113), (16, 12), (16, 13), (65536, 3), (65536, 4)]
)
def test_every_layer_and_every_bit_tells_paths_apart(num_experts, layers):
    values = [1 << bit for bit in range((num_experts - 1).bit_length()) if 1 << bit < num_experts]
    path_ids_NL = np.zeros((1 + layers * len(values), layers), dtype=np.uint16)
    for row, (layer, value) in enumerate(((layer, v) for layer in range(layers) for v in values), start=1):
        path_ids_NL[row, layer] = value
    counts = counted(num_experts, path_ids_NL, np.full(len(path_ids_NL), 65535))
    assert len(counts.table().starts_P) == len(path_ids_NL)
    assert sorted(counts.most_frequent(len(path_ids_NL)).paths_PL.tolist()) == sorted(path_ids_NL.tolist())


def test_memory_is_bounded_by_distinct_pairs_not_tokens():
    rng = np.random.default_rng(5)
    path_ids_NL, class_ids_N = rng.integers(0, 2, (2000, 8), dtype=np.int8), rng.integers(0, 3, 2000)
    counts = PathClassCounts(num_layers=8, num_experts=2)
    tracemalloc.start()
    for _ in range(1000):
        counts.update(path_ids_NL, class_ids_N)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # at most 2^16 keys of 8 bytes with 8-byte counts may wait; all 1000 batches of 768 pairs would hold 12 MB
    assert held < 3 * 2**20
    assert int(counts.table().counts_J.sum()) == 1000 * 2000


def counts_with(num_layers=2, num_experts=4):
    return PathClassCounts(num_layers=num_layers, num_experts=num_experts)


GOOD = np.zeros((3, 2), dtype=np.int64)
CLASSES = np.zeros(3, dtype=np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counts_with(num_layers=0), r"num_layers \(0\) must be at least 1"),
        (lambda: counts_with(num_experts=0), r"num_experts \(0\) must be at least 1"),
        (lambda: counts_with().update(GOOD[0], CLASSES), r"path_ids \(int64 \[2\]\) must be integers"),
        (lambda: counts_with().update(GOOD + 4, CLASSES), r"path_ids \(4\) must be at least 0 and below num_experts"),
        (lambda: counts_with().update(GOOD, CLASSES[:2]), r"class_ids \(int64 \[2\]\) must be integers \[3\]"),
        (lambda: counts_with().update(GOOD, CLASSES * 0.5), r"class_ids \(float64 \[3\]\) must be integers \[3\]"),
        (lambda: counts_with().update(GOOD, CLASSES - 1), r"class_ids \(-1\) must be at least 0 and below 65536"),
        (lambda: counts_with().update(GOOD, CLASSES + 65536), r"class_ids \(65536\) must be at least 0 and below"),
        (lambda: counts_with().most_frequent(0), r"num_paths \(0\) must be at least 1"),
        (lambda: counts_with().merge(counts_with(num_layers=3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
