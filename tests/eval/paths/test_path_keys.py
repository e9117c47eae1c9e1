"""Packed keys against tuples and a Counter, also when every mix of a key collides."""

# Shapes: N tokens, J columns, P distinct paths, W 64-bit words of a path.

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.paths import path_keys
from pathmoe_eval.paths.path_keys import KeyCounts, bits_per_id, group, mix, num_words, pack, unpack


@st.composite
def ids(draw, max_columns=30):
    num_experts = draw(st.sampled_from([1, 2, 3, 16, 17, 256, 65536]))
    shape = draw(st.tuples(st.integers(0, 30), st.integers(1, max_columns)))
    elements = st.integers(0, num_experts - 1)
    return num_experts, draw(hnp.arrays(np.int64, shape, elements=elements, fill=elements))


@given(ids())
def test_unpack_inverts_pack_in_the_smallest_dtype(case):
    num_experts, ids_NJ = case
    keys_WN = pack(ids_NJ, num_experts)
    unpacked_NJ = unpack(keys_WN, ids_NJ.shape[1], num_experts)
    assert unpacked_NJ.tolist() == ids_NJ.tolist()
    assert unpacked_NJ.dtype == (np.uint8 if num_experts <= 256 else np.uint16)
    some = list(range(0, ids_NJ.shape[1], 3))
    assert unpack(keys_WN, ids_NJ.shape[1], num_experts, some).tolist() == ids_NJ[:, some].tolist()


@given(ids())
def test_keys_sort_as_paths_do(case):
    num_experts, ids_NJ = case
    order = np.lexsort(pack(ids_NJ, num_experts)[::-1])
    assert ids_NJ[order].tolist() == sorted(ids_NJ.tolist())


def grouped(ids_NJ, counts_N, num_experts):
    """Rows and their summed counts, through `group`."""
    keys_WN = pack(ids_NJ, num_experts)
    keys_WP, counts_P = group(keys_WN, counts_N, ids_NJ.shape[1] * bits_per_id(num_experts))
    rows = map(tuple, unpack(keys_WP, ids_NJ.shape[1], num_experts).tolist())
    return dict(zip(rows, counts_P.tolist(), strict=True))


def brute_force(ids_NJ, counts_N):
    totals = Counter()
    for row, count in zip(map(tuple, ids_NJ.tolist()), counts_N.tolist(), strict=True):
        totals[row] += count
    return totals


@given(ids(max_columns=20), st.data())
def test_group_equals_a_counter(case, data):
    num_experts, ids_NJ = case
    counts_N = data.draw(hnp.arrays(np.int64, len(ids_NJ), elements=st.integers(1, 2**40)))
    assert grouped(ids_NJ, counts_N, num_experts) == brute_force(ids_NJ, counts_N)


@pytest.mark.parametrize("num_columns", [17, 24, 70])
def test_paths_whose_mixes_collide_are_told_apart(monkeypatch, num_columns):
    monkeypatch.setattr(path_keys, "mix", lambda keys_WN: mix(keys_WN) & np.uint64(7))
    rng = np.random.default_rng(0)
    ids_NJ = rng.integers(0, 16, (200, num_columns))[rng.integers(0, 200, 2000)]
    counts_N = rng.integers(1, 5, 2000)
    assert grouped(ids_NJ, counts_N, 16) == brute_force(ids_NJ, counts_N)


@given(ids(), st.randoms(use_true_random=False))
def test_the_order_of_groups_depends_on_the_keys_alone(case, random):
    num_experts, ids_NJ = case
    shuffled = list(range(len(ids_NJ)))
    random.shuffle(shuffled)
    ones_N = np.ones(len(ids_NJ), dtype=np.int64)
    key_bits = ids_NJ.shape[1] * bits_per_id(num_experts)
    first = group(pack(ids_NJ, num_experts), ones_N, key_bits)
    second = group(pack(ids_NJ[shuffled], num_experts), ones_N, key_bits)
    assert [part.tolist() for part in first] == [part.tolist() for part in second]


@given(ids(), st.data())
def test_totals_equal_a_counter_however_keys_are_added(case, data):
    num_experts, ids_NJ = case
    counts_N = data.draw(hnp.arrays(np.int64, len(ids_NJ), elements=st.integers(1, 9)))
    num_columns = ids_NJ.shape[1]
    counts = KeyCounts(num_words=num_words(num_columns, num_experts), key_bits=num_columns * bits_per_id(num_experts))
    expected = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_keys, "_MIN_PENDING_KEYS", data.draw(st.integers(1, 20)))
        for rows in np.array_split(np.arange(len(ids_NJ)), 5):
            once = data.draw(st.booleans())
            counts.add(pack(ids_NJ[rows], num_experts), None if once else counts_N[rows])
            expected += brute_force(ids_NJ[rows], np.ones(len(rows), dtype=int) if once else counts_N[rows])
    for keys_WP, counts_P in (counts.totals(), counts.sorted_totals()):
        paths = list(map(tuple, unpack(keys_WP, num_columns, num_experts).tolist()))
        assert len(paths) == len(expected)
        assert dict(zip(paths, counts_P.tolist(), strict=True)) == expected
    assert paths == sorted(paths)


@pytest.mark.parametrize("num_columns", [5, 24])
def test_every_bit_of_the_mix_is_even_over_neighbouring_keys(num_columns):
    # 2^16 paths that differ in their last layers only
    ids_NJ = np.zeros((1 << 16, num_columns), dtype=np.uint8)
    ids_NJ[:, -4:] = np.stack(np.unravel_index(np.arange(1 << 16), (16, 16, 16, 16)), axis=1)
    mixed_N = mix(pack(ids_NJ, 16))
    assert len(np.unique(mixed_N)) == 1 << 16
    ones = [int(np.sum((mixed_N >> np.uint64(bit)) & np.uint64(1))) for bit in range(64)]
    # five standard deviations of a fair coin
    assert max(abs(count - (1 << 15)) for count in ones) < 5 * 128
