"""Adjacent-layer agreement and mutual information against token-by-token definitions, closed forms and invariances."""

# Shapes: N tokens, L MoE layers, E experts.

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.layers.agreement import AdjacentAgreement, AdjacentCounts, adjacent_agreement


def entropies(symbols):
    """Plug-in and Miller-Madow entropy in bits."""
    counts = Counter(symbols)
    plug_in = -math.fsum(c / len(symbols) * math.log2(c / len(symbols)) for c in counts.values())
    return np.array([plug_in, plug_in + (len(counts) - 1) / (2 * len(symbols) * math.log(2))])


def brute_force(path_ids_NL):
    """Every field from the definition, one token at a time; information as H(a) + H(b) - H(a, b)."""
    columns = path_ids_NL.T.tolist()
    n = len(path_ids_NL)
    fields = {"agreement": [], "agreement_null": [], "mutual_information_bits": []}
    fields["mutual_information_corrected_bits"] = []
    for a, b in pairwise(columns):
        fields["agreement"].append(sum(x == y for x, y in zip(a, b, strict=True)) / n)
        fields["agreement_null"].append(sum(x == y for x in a for y in b) / n**2)
        plug_in, corrected = entropies(a) + entropies(b) - entropies(list(zip(a, b, strict=True)))
        fields["mutual_information_bits"].append(plug_in)
        fields["mutual_information_corrected_bits"].append(corrected)
    means = {f"mean_{name}": np.mean(values) for name, values in fields.items()}
    return {"num_tokens": n, **fields, **means}


def assert_fields(result: AdjacentAgreement, expected):
    assert set(vars(result)) == set(expected)
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, rel=1e-9, abs=1e-9), name


@st.composite
def paths(draw):
    num_experts = draw(st.sampled_from([1, 2, 5, 64]))
    shape = draw(st.tuples(st.integers(1, 30), st.integers(2, 5)))
    ids = hnp.arrays(np.int64, shape, elements=st.integers(0, num_experts - 1), fill=st.integers(0, num_experts - 1))
    return num_experts, draw(ids)


@given(paths())
def test_equals_brute_force(case):
    _, path_ids_NL = case
    assert_fields(adjacent_agreement(path_ids_NL), brute_force(path_ids_NL))


def test_equals_brute_force_on_correlated_layers():
    rng = np.random.default_rng(0)
    kept_NL = rng.random((1500, 5)) < 0.7
    path_ids_NL = np.where(kept_NL, rng.integers(0, 6, (1500, 1)), rng.integers(0, 6, (1500, 5)))
    assert_fields(adjacent_agreement(path_ids_NL), brute_force(path_ids_NL))


@given(paths(), st.data())
def test_batching_order_merging_and_spare_experts_do_not_change_one_bit(count_in_parts, case, data):
    num_experts, path_ids_NL = case
    shape = {"num_layers": path_ids_NL.shape[1], "num_experts": num_experts}
    whole = AdjacentCounts(**shape)
    whole.update(path_ids_NL)
    assert count_in_parts(lambda: AdjacentCounts(**shape), data, path_ids_NL).result() == whole.result()
    # the one-shot function takes num_experts from the data, so experts without tokens must not matter
    assert_fields(adjacent_agreement(path_ids_NL), vars(whole.result()))


@given(paths(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_per_layer_leaves_mutual_information(case, seed):
    num_experts, path_ids_NL = case
    rng = np.random.default_rng(seed)
    relabelled_NL = np.stack([rng.permutation(num_experts)[column] for column in path_ids_NL.T], axis=1)
    ours, theirs = adjacent_agreement(path_ids_NL), adjacent_agreement(relabelled_NL)
    assert theirs.mutual_information_bits == pytest.approx(ours.mutual_information_bits, abs=1e-12)
    assert theirs.mutual_information_corrected_bits == pytest.approx(ours.mutual_information_corrected_bits, abs=1e-12)


def test_relabelling_moves_agreement_from_one_to_zero():
    path_ids_N = np.arange(60) % 6
    copied = adjacent_agreement(np.stack([path_ids_N] * 4, axis=1))
    shifted = adjacent_agreement(np.stack([(path_ids_N + layer) % 6 for layer in range(4)], axis=1))
    assert copied.agreement == (1.0, 1.0, 1.0)
    assert shifted.agreement == (0.0, 0.0, 0.0)
    for result in (copied, shifted):
        assert result.mutual_information_bits == pytest.approx([math.log2(6)] * 3)
        assert result.agreement_null == pytest.approx([1 / 6] * 3)


def test_exactly_independent_layers():
    # every pair of experts equally often: agreement is its null and the layers share no information
    first_N, second_N = np.divmod(np.arange(16 * 16 * 5) % 256, 16)
    result = adjacent_agreement(np.stack([first_N, second_N], axis=1))
    assert result.agreement == pytest.approx([1 / 16])
    assert result.agreement_null == pytest.approx([1 / 16])
    assert result.mutual_information_bits == (0.0,)
    assert result.mutual_information_corrected_bits == pytest.approx([-15 * 15 / (2 * 1280 * math.log(2))])


def test_independent_draws_agree_as_the_null_and_the_correction_removes_the_bias():
    load_E = np.array([0.5, 0.2, 0.2, 0.1])
    path_ids_NL = np.random.default_rng(1).choice(4, size=(2000, 201), p=load_E)
    result = adjacent_agreement(path_ids_NL)
    assert result.mean_agreement_null == pytest.approx(float(load_E @ load_E), abs=0.002)
    assert result.mean_agreement == pytest.approx(result.mean_agreement_null, abs=0.005)
    bias = 3 * 3 / (2 * 2000 * math.log(2))
    assert result.mean_mutual_information_bits == pytest.approx(bias, rel=0.15)
    assert abs(result.mean_mutual_information_corrected_bits) < bias * 0.15


def test_a_constant_layer_shares_no_information():
    result = adjacent_agreement(np.stack([np.full(50, 3), np.arange(50) % 5], axis=1))
    assert result.mutual_information_bits == pytest.approx([0.0])
    assert result.mutual_information_corrected_bits == pytest.approx([0.0])
    assert result.agreement == result.agreement_null == pytest.approx([0.2])


@given(paths(), st.data())
def test_mask_drops_tokens_even_with_invalid_ids(case, data):
    _, path_ids_NL = case
    mask_N = data.draw(hnp.arrays(np.bool_, len(path_ids_NL)).filter(np.any))
    padded_NL = np.where(mask_N[:, None], path_ids_NL, -1)
    assert adjacent_agreement(padded_NL, mask_N) == adjacent_agreement(path_ids_NL[mask_N])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_narrow_dtypes_do_not_overflow(dtype):
    path_ids_NL = np.random.default_rng(2).integers(0, 127, (500, 3))
    assert adjacent_agreement(path_ids_NL.astype(dtype)) == adjacent_agreement(path_ids_NL)


def test_counts_beyond_int32_squared_do_not_overflow():
    counts = AdjacentCounts(num_layers=2, num_experts=2)
    counts.update(np.array([[0, 0], [1, 1], [1, 1], [0, 1]]))
    small = counts.result()
    for _ in range(40):
        counts.merge(counts)
    large = counts.result()
    assert large.num_tokens == 4 * 2**40
    assert large.agreement == small.agreement
    assert large.agreement_null == pytest.approx(small.agreement_null)
    assert large.mutual_information_bits == pytest.approx(small.mutual_information_bits)


def counts_with(num_layers=2, num_experts=4):
    return AdjacentCounts(num_layers=num_layers, num_experts=num_experts)


GOOD = np.zeros((3, 2), dtype=np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adjacent_agreement(GOOD[:, :1]), r"num_layers \(1\) must be at least 2"),
        (lambda: adjacent_agreement(GOOD[0]), r"path_ids \(int64 \[2\]\) must be integers \[tokens, layers\]"),
        (lambda: adjacent_agreement(GOOD - 1), r"path_ids \(-1\) must be at least 0"),
        (lambda: adjacent_agreement(GOOD + 50_000), r"num_experts \(50001\) must be between 1 and 4096"),
        (lambda: adjacent_agreement(GOOD[:0]), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: adjacent_agreement(GOOD, np.ones(2, dtype=bool)), r"token_mask \(bool \[2\]\) must be bool \[3\]"),
        (lambda: counts_with(num_experts=0), r"num_experts \(0\) must be between 1 and 4096"),
        (lambda: counts_with().update(GOOD + 4), r"path_ids \(4\) must be at least 0 and below num_experts \(4\)"),
        (lambda: counts_with(num_layers=3).update(GOOD), r"path_ids \(2 layers\) must have num_layers \(3\) columns"),
        (lambda: counts_with().merge(counts_with(num_layers=3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
