"""Path entropy against a Counter over tuples, closed forms, and the invariances of a count."""

# Shapes: N tokens, L MoE layers, K experts of a set, P paths, C distinct values of a count.

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.paths.paths import PathCounts, PathEntropy, chao_shen_bits, path_entropy


def brute_force(path_ids_NL):
    """Every field, one path at a time."""
    counts = Counter(map(tuple, path_ids_NL.tolist()))
    n = len(path_ids_NL)
    entropy = -math.fsum(c / n * math.log2(c / n) for c in counts.values())
    singletons = min(sum(c == 1 for c in counts.values()), n - 1)
    q = [(1 - singletons / n) * c / n for c in counts.values()]
    return {
        "num_tokens": n,
        "num_paths": len(counts),
        "entropy_bits": entropy,
        "effective_paths": 2**entropy,
        "ceiling_bits": math.log2(n),
        "entropy_chao_shen_bits": math.fsum(-x * math.log2(x) / (1 - (1 - x) ** n) for x in q),
    }


def assert_fields(result: PathEntropy, expected):
    assert vars(result) == {name: pytest.approx(value, rel=1e-9, abs=1e-9) for name, value in expected.items()}


@st.composite
def paths(draw):
    num_experts = draw(st.sampled_from([1, 2, 3, 16, 17, 256, 65536]))
    # 24 layers need one word at 2 experts, two at 16, six at 65536
    shape = draw(st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 5, 24])))
    ids = hnp.arrays(np.int64, shape, elements=st.integers(0, num_experts - 1), fill=st.integers(0, num_experts - 1))
    return num_experts, draw(ids)


@given(paths())
def test_equals_brute_force(case):
    _, path_ids_NL = case
    assert_fields(path_entropy(path_ids_NL), brute_force(path_ids_NL))


@pytest.mark.parametrize("num_experts", [2, 4])
def test_equals_brute_force_on_a_sample_with_all_kinds_of_counts(num_experts):
    path_ids_NL = np.random.default_rng(0).integers(0, num_experts, (3000, 6))
    assert_fields(path_entropy(path_ids_NL), brute_force(path_ids_NL))


@given(paths(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    num_experts, path_ids_NL = case
    shape = {"num_layers": path_ids_NL.shape[1], "num_experts": num_experts}
    assert count_in_parts(lambda: PathCounts(**shape), data, path_ids_NL).result() == path_entropy(path_ids_NL)


def test_many_compactions_equal_one_pass(monkeypatch):
    monkeypatch.setattr("pathmoe_eval.paths.path_keys._MIN_PENDING_KEYS", 8)
    path_ids_NL = np.random.default_rng(1).integers(0, 16, (4000, 24)) // np.random.default_rng(2).integers(
        1, 17, (4000, 1)
    )
    counts = PathCounts(num_layers=24, num_experts=16)
    for batch_NL in np.array_split(path_ids_NL, 300):
        counts.update(batch_NL)
        counts.result()
    assert counts.result() == path_entropy(path_ids_NL)


def test_merge_leaves_the_other_usable_and_duplication_leaves_entropy():
    path_ids_NL = np.random.default_rng(3).integers(0, 3, (50, 4))
    once = path_entropy(path_ids_NL)
    counts, other = (PathCounts(num_layers=4, num_experts=3) for _ in range(2))
    other.update(path_ids_NL)
    counts.merge(other)
    counts.merge(other)
    assert other.result() == once
    twice = counts.result()
    assert (twice.num_tokens, twice.num_paths) == (100, once.num_paths)
    assert twice.entropy_bits == pytest.approx(once.entropy_bits)


@given(paths(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_per_layer_changes_nothing(case, seed):
    num_experts, path_ids_NL = case
    rng = np.random.default_rng(seed)
    relabelled_NL = np.stack([rng.permutation(num_experts)[column] for column in path_ids_NL.T], axis=1)
    assert path_entropy(relabelled_NL) == path_entropy(path_ids_NL)


@given(paths(), st.data())
def test_mask_drops_tokens_even_with_invalid_ids(case, data):
    num_experts, path_ids_NL = case
    mask_N = data.draw(hnp.arrays(np.bool_, len(path_ids_NL)).filter(np.any))
    padded_NL = np.where(mask_N[:, None], path_ids_NL, -1)
    counts = PathCounts(num_layers=path_ids_NL.shape[1], num_experts=num_experts)
    counts.update(padded_NL, mask_N)
    assert path_entropy(padded_NL, mask_N) == counts.result() == path_entropy(path_ids_NL[mask_N])


@pytest.mark.parametrize("num_tokens", [1, 2, 1000])
def test_one_path_has_no_entropy(num_tokens):
    result = path_entropy(np.full((num_tokens, 24), 15))
    assert (result.num_paths, result.entropy_bits, result.effective_paths) == (1, 0.0, 1.0)
    assert result.entropy_chao_shen_bits == 0.0
    assert math.copysign(1, result.entropy_chao_shen_bits) == 1


@pytest.mark.parametrize("num_tokens", [2, 3, 1000, 50_000])
def test_all_different_reaches_the_ceiling(num_tokens):
    result = path_entropy(np.stack(np.unravel_index(np.arange(num_tokens), (256, 256)), axis=1))
    assert result.num_paths == num_tokens
    assert result.entropy_bits == result.ceiling_bits == math.log2(num_tokens)


@pytest.mark.parametrize("num_paths", [2, 7, 512])
def test_uniform_over_m_paths(num_paths):
    path_ids_NL = np.stack(np.unravel_index(np.arange(num_paths * 3) % num_paths, (8, 8, 8)), axis=1)
    result = path_entropy(path_ids_NL)
    assert result.entropy_bits == pytest.approx(math.log2(num_paths))
    assert result.effective_paths == pytest.approx(num_paths)


@pytest.mark.parametrize(("num_experts", "layers"), [(2, 64), (2, 65), (16, 16), (17, 13), (65536, 4), (65536, 9)])
def test_every_layer_and_every_bit_tells_paths_apart(num_experts, layers):
    # a path of zeros, then one path for each single bit of each layer: a collision anywhere lowers the count
    values = [1 << bit for bit in range((num_experts - 1).bit_length()) if 1 << bit < num_experts]
    path_ids_NL = np.zeros((1 + layers * len(values), layers), dtype=np.uint16)
    for row, (layer, value) in enumerate(((layer, v) for layer in range(layers) for v in values), start=1):
        path_ids_NL[row, layer] = value
    assert path_entropy(path_ids_NL).num_paths == len(path_ids_NL)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint64])
def test_any_integer_dtype_gives_the_same(dtype):
    path_ids_NL = np.random.default_rng(4).integers(0, 100, (500, 3))
    assert path_entropy(np.asfortranarray(path_ids_NL.astype(dtype))) == path_entropy(path_ids_NL)


def test_memory_is_bounded_by_distinct_paths_not_tokens():
    batch_NL = np.random.default_rng(5).integers(0, 2, (2000, 8), dtype=np.int8)
    counts = PathCounts(num_layers=8, num_experts=2)
    tracemalloc.start()
    for _ in range(3000):
        counts.update(batch_NL)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # at most 2^16 keys of 8 bytes with 8-byte counts may wait; all 3000 batches of 256 paths would hold 12 MB
    assert held < 3 * 2**20
    assert counts.result().num_tokens == 3000 * 2000


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_chao_shen_is_nearer_the_truth_than_plug_in_when_paths_are_unseen(exponent):
    weights = 1 / np.arange(1, 4097) ** exponent
    weights /= weights.sum()
    truth = -float(np.sum(weights * np.log2(weights)))
    draws_N1 = np.random.default_rng(6).choice(4096, 2000, p=weights)[:, None]
    result = path_entropy(draws_N1)
    assert abs(result.entropy_chao_shen_bits - truth) < abs(result.entropy_bits - truth) / 2


def test_chao_shen_with_nothing_unseen_is_the_plug_in_entropy():
    # three outcomes, a million draws: coverage and detection are 1
    sizes_C, multiplicity_C = np.array([250_000, 500_000]), np.array([2, 1])
    assert chao_shen_bits(sizes_C, multiplicity_C) == pytest.approx(1.5, abs=1e-12)


@given(paths(), st.integers(0, 50))
def test_the_most_frequent_paths_equal_a_sorted_counter(case, num_paths):
    num_experts, path_ids_NL = case
    counts = PathCounts(num_layers=path_ids_NL.shape[1], num_experts=num_experts)
    counts.update(path_ids_NL)
    expected = sorted(Counter(map(tuple, path_ids_NL.tolist())).items(), key=lambda item: (-item[1], item[0]))
    paths_PL, counts_P = counts.most_frequent(num_paths)
    found = list(zip(map(tuple, paths_PL.tolist()), counts_P.tolist(), strict=True))
    assert found == expected[:num_paths]
    assert paths_PL.shape == (len(found), path_ids_NL.shape[1])


@given(paths(), st.data())
def test_counts_between_layers_are_those_of_the_cut_paths(case, data):
    num_experts, path_ids_NL = case
    num_layers = path_ids_NL.shape[1]
    first = data.draw(st.integers(0, num_layers - 1))
    stop = data.draw(st.integers(first + 1, num_layers))
    whole, part = (PathCounts(num_layers=n, num_experts=num_experts) for n in (num_layers, stop - first))
    whole.update(path_ids_NL)
    part.update(path_ids_NL[:, first:stop])
    assert [x.tolist() for x in whole.between(first, stop).most_frequent(99)] == [
        x.tolist() for x in part.most_frequent(99)
    ]
    assert whole.between(first, stop).result() == part.result()
    assert whole.result() == path_entropy(path_ids_NL)


@given(paths())
def test_frequencies_of_frequencies(case):
    num_experts, path_ids_NL = case
    counts = PathCounts(num_layers=path_ids_NL.shape[1], num_experts=num_experts)
    counts.update(path_ids_NL)
    expected = Counter(Counter(map(tuple, path_ids_NL.tolist())).values())
    assert [x.tolist() for x in counts.frequencies()] == [list(x) for x in zip(*sorted(expected.items()), strict=True)]


@given(st.integers(2, 4), st.sampled_from([4, 16, 300]), st.integers(0, 2**32 - 1))
def test_paths_of_sets_equal_brute_force_whatever_the_order_in_a_set(set_size, num_experts, seed):
    rng = np.random.default_rng(seed)
    kinds_NLK = rng.random((6, 3, num_experts)).argsort(axis=2)[:, :, :set_size]
    expert_ids_NLK = rng.permuted(kinds_NLK[rng.integers(0, 6, 40)], axis=2)
    counts = PathCounts(num_layers=3, num_experts=num_experts, set_size=set_size)
    counts.update(expert_ids_NLK[:25])
    counts.update(expert_ids_NLK, np.arange(40) >= 25)
    expected = Counter(tuple(tuple(sorted(layer)) for layer in token) for token in expert_ids_NLK.tolist())
    paths_PLK, counts_P = counts.most_frequent(40)
    found = [
        (tuple(map(tuple, path)), count) for path, count in zip(paths_PLK.tolist(), counts_P.tolist(), strict=True)
    ]
    assert found == sorted(expected.items(), key=lambda item: (-item[1], item[0]))
    assert counts.result().num_paths == len(expected)


def counts_with(num_layers=2, num_experts=4, set_size=1):
    return PathCounts(num_layers=num_layers, num_experts=num_experts, set_size=set_size)


GOOD = np.zeros((3, 2), dtype=np.int64)
SETS = np.zeros((3, 2, 2), dtype=np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: path_entropy(GOOD[0]), r"path_ids \(int64 \[2\]\) must be integers \[tokens, layers\]"),
        (lambda: path_entropy(GOOD.astype(float)), r"path_ids \(float64 \[3, 2\]\) must be integers"),
        (lambda: path_entropy(GOOD[:, :0]), r"num_layers \(0\) must be at least 1"),
        (lambda: path_entropy(GOOD - 1), r"path_ids \(-1\) must be at least 0"),
        (lambda: path_entropy(GOOD[:0]), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: path_entropy(GOOD, np.zeros(3, dtype=bool)), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: path_entropy(GOOD, np.ones(3)), r"token_mask \(float64 \[3\]\) must be bool \[3\]"),
        (lambda: path_entropy(GOOD, np.ones(2, dtype=bool)), r"token_mask \(bool \[2\]\) must be bool \[3\]"),
        (lambda: counts_with().result(), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: counts_with(num_experts=0), r"num_experts \(0\) must be at least 1"),
        (lambda: counts_with().update(GOOD + 4), r"path_ids \(4\) must be at least 0 and below num_experts \(4\)"),
        (lambda: counts_with(num_layers=3).update(GOOD), r"path_ids \(2 layers\) must have num_layers \(3\) columns"),
        (lambda: counts_with().merge(counts_with(num_layers=3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
        (lambda: counts_with().merge(counts_with(num_experts=5)), r"other.num_experts \(5\) must equal num_experts"),
        (lambda: counts_with(set_size=5), r"set_size \(5\) must be between 1 and num_experts \(4\)"),
        (lambda: counts_with(set_size=0), r"set_size \(0\) must be between 1"),
        (lambda: counts_with(set_size=2).update(GOOD), r"path_ids \(\[3, 2\]\) must be \[tokens, layers, 2\]"),
        (lambda: counts_with(set_size=2).update(SETS[:, :1]), r"path_ids \(1 layers\) must have num_layers \(2\)"),
        (lambda: counts_with(set_size=2).update(SETS + 4), r"path_ids \(4\) must be at least 0 and below num_experts"),
        (lambda: counts_with(set_size=2).update(SETS * 1.0), r"path_ids \(float64 .*\) must be integers"),
        (lambda: counts_with(set_size=2).update(SETS, np.ones(2, dtype=bool)), r"token_mask .* must be bool \[3\]"),
        (lambda: counts_with(set_size=2).merge(counts_with(set_size=3)), r"other.set_size \(3\) must equal set_size"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
