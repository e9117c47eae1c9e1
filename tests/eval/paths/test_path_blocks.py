"""Blocks of layers against a Counter for each block and each layer, invariances and independent layers."""

# Shapes: N tokens, L MoE layers, K experts of a set.

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pathmoe_eval.layer_blocks import layer_blocks
from pathmoe_eval.paths.path_blocks import BlockCounts


def entropies(symbols):
    """Plug-in and Miller-Madow entropy in bits."""
    counts = Counter(symbols)
    plug_in = math.fsum(c / len(symbols) * math.log2(len(symbols) / c) for c in counts.values())
    return np.array([plug_in, plug_in + (len(counts) - 1) / (2 * len(symbols) * math.log(2))])


def brute_force(elements, block, possible_elements):
    """Every field; `elements` holds for each token a list of what its path is made of."""
    paths = [tuple(path[layer] for layer in block) for path in elements]
    entropy = entropies(paths)
    null = sum(entropies([path[layer] for path in elements]) for layer in block)
    return {
        "first_layer": block.start,
        "num_layers": len(block),
        "num_tokens": len(paths),
        "num_paths": len(set(paths)),
        "entropy_bits": entropy[0],
        "effective_paths": 2 ** entropy[0],
        "ceiling_bits": min(math.log2(len(paths)), len(block) * math.log2(possible_elements)),
        "entropy_bits_null": null[0],
        "total_correlation_bits": null[0] - entropy[0],
        "total_correlation_corrected_bits": null[1] - entropy[1],
    }


def assert_equal(results, expected):
    assert [vars(r) for r in results] == [
        {name: pytest.approx(value, rel=1e-9, abs=1e-9) for name, value in fields.items()} for fields in expected
    ]


@st.composite
def cases(draw):
    num_experts = draw(st.sampled_from([1, 2, 5, 64, 300]))
    elements = st.integers(0, num_experts - 1)
    ids_NL = draw(hnp.arrays(np.int64, draw(st.tuples(st.integers(1, 30), st.integers(1, 9))), elements=elements))
    return num_experts, ids_NL, layer_blocks(draw(hnp.arrays(np.int64, ids_NL.shape[1], elements=st.integers(0, 2))))


def counted(blocks, ids, num_experts, set_size=1):
    counts = BlockCounts(blocks=blocks, num_layers=ids.shape[1], num_experts=num_experts, set_size=set_size)
    counts.update(ids)
    return counts


@given(cases())
def test_equals_brute_force(case):
    num_experts, ids_NL, blocks = case
    expected = [brute_force(ids_NL.tolist(), block, num_experts) for block in blocks]
    assert_equal(counted(blocks, ids_NL, num_experts).result(), expected)


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_sets_equal_brute_force(seed, set_size):
    ids_NLK = np.random.default_rng(seed).random((20, 5, 6)).argsort(axis=2)[:, :, :set_size]
    sets = [[frozenset(layer) for layer in token] for token in ids_NLK.tolist()]
    blocks = [range(2), range(1, 5)]
    expected = [brute_force(sets, block, math.comb(6, set_size)) for block in blocks]
    assert_equal(counted(blocks, ids_NLK, 6, set_size).result(), expected)


@given(cases(), st.data())
def test_batching_order_masks_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    num_experts, ids_NL, blocks = case
    mask_N = data.draw(hnp.arrays(np.bool_, len(ids_NL)).filter(np.any))
    masked_NL = np.where(mask_N[:, None], ids_NL, -1)
    parts = count_in_parts(lambda: counted(blocks, ids_NL[:0], num_experts), data, masked_NL, mask_N)
    assert parts.result() == counted(blocks, ids_NL[mask_N], num_experts).result()


@given(cases(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_per_layer_changes_nothing(case, seed):
    num_experts, ids_NL, blocks = case
    rng = np.random.default_rng(seed)
    relabelled_NL = np.stack([rng.permutation(num_experts)[column] for column in ids_NL.T], axis=1)
    assert counted(blocks, relabelled_NL, num_experts).result() == counted(blocks, ids_NL, num_experts).result()


def test_independent_layers_have_no_total_correlation():
    ids_NL = np.random.default_rng(0).integers(0, 4, (200_000, 4)) ** 2 // 3
    (result,) = counted([range(4)], ids_NL, 4).result()
    assert 0 < result.total_correlation_bits < 1e-3
    assert abs(result.total_correlation_corrected_bits) < 3e-4


def test_layers_that_copy_one_another_share_all_but_one_entropy():
    ids_NL = np.repeat(np.arange(8)[:, None], 5, axis=1)
    (result,) = counted([range(5)], ids_NL, 8).result()
    assert (result.entropy_bits, result.entropy_bits_null, result.total_correlation_bits) == (3, 15, 12)
    assert result.ceiling_bits == 3


IDS_NL = np.zeros((3, 4), dtype=np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counted([range(0, 5)], IDS_NL, 2), r"blocks \(range\(0, 5\)\) must be of .* num_layers \(4\)"),
        (lambda: counted([range(2, 2)], IDS_NL, 2), r"blocks \(range\(2, 2\)\) must be of consecutive"),
        (
            lambda: counted([range(2)], IDS_NL, 2).update(IDS_NL[:, :3]),
            r"path_ids \(3 layers\) must have num_layers",
        ),
        (lambda: counted([range(2)], IDS_NL, 2).update(IDS_NL + 2), r"path_ids \(2\) must be at least 0 and below"),
        (
            lambda: counted([range(2)], IDS_NL, 2).merge(counted([range(3)], IDS_NL, 2)),
            r"other.blocks .* must equal blocks",
        ),
        (
            lambda: counted([range(2)], IDS_NL, 2).merge(counted([range(2)], IDS_NL, 3)),
            r"other.num_experts \(3\)",
        ),
        (lambda: counted([range(2)], IDS_NL[:0], 2).result(), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: counted([range(0, 4, 2)], IDS_NL, 2), r"blocks \(range\(0, 4, 2\)\) must be of consecutive layers"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
