"""Joint counts of experts against loops over tokens, in every way that they are counted."""

# Shapes: N tokens, L MoE layers, P pairs of layers, A = L - 1 adjacent pairs, E experts, K experts per token.

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layers import joint_counts
from pathmoe_eval.layers.joint_counts import JointCounts


def counts_for(ids_NLK, num_experts):
    _, num_layers, num_picks = ids_NLK.shape
    return JointCounts(num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_picks)


def table(pairs, num_experts):
    count = Counter(pairs)
    return [[count[a, b] for b in range(num_experts)] for a in range(num_experts)]


@st.composite
def routings(draw):
    num_experts = draw(st.sampled_from([1, 3, 16, 20, 40, 70, 140]))
    num_picks = draw(st.integers(1, min(4, num_experts)))
    shape = (draw(st.integers(1, 9)), draw(st.integers(2, 4)), num_experts)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.argsort(rng.random(shape), axis=2)[:, :, :num_picks], num_experts


@given(routings(), st.booleans(), st.booleans())
def test_equals_brute_force(case, by_planes, only_adjacent):
    ids_NLK, num_experts = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_counts, "_MAX_EXPERTS_OF_PLANES", 1000 if by_planes else 0)
        patch.setattr(joint_counts, "_MAX_CELLS", 0 if only_adjacent else 1 << 25)
        counts = counts_for(ids_NLK, num_experts)
        counts.update(ids_NLK)
    tokens, num_layers = ids_NLK.tolist(), ids_NLK.shape[1]
    pairs = [(a, b) for a in range(num_layers) for b in range(a + 1, num_layers) if b == a + 1 or not only_adjacent]
    assert list(counts.pairs) == pairs
    assert counts.has_all_pairs == (not only_adjacent or num_layers == 2)
    for (a, b), joint_EE in zip(pairs, counts.top1_PEE, strict=True):
        assert joint_EE.tolist() == table(((token[a][0], token[b][0]) for token in tokens), num_experts)
    for layer, joint_EE in enumerate(counts.sets_AEE):
        both = (pair for token in tokens for pair in product(token[layer], token[layer + 1]))
        assert joint_EE.tolist() == table(both, num_experts)
    assert counts.num_tokens == len(tokens)
    assert np.array_equal(
        counts.adjacent_top1(), [counts.top1_PEE[pairs.index((a, a + 1))] for a in range(num_layers - 1)]
    )
    loads = [Counter(token[layer][0] for token in tokens) for layer in range(num_layers)]
    assert counts.top1_loads().tolist() == [[load[e] for e in range(num_experts)] for load in loads]


@given(routings(), st.data())
def test_batching_order_and_merging_do_not_matter(count_in_parts, case, data):
    parts, whole = count_in_parts(lambda: counts_for(*case), data, case[0]), counts_for(*case)
    whole.update(case[0])
    assert parts.num_tokens == whole.num_tokens
    assert np.array_equal(parts.top1_PEE, whole.top1_PEE)
    assert np.array_equal(parts.sets_AEE, whole.sets_AEE)


def test_many_experts_are_counted_for_adjacent_layers_only():
    # 45 pairs of 1000 x 1000 counts would be 360 MB
    assert not JointCounts(num_layers=10, num_experts=1000, num_experts_per_tok=1).has_all_pairs
    assert JointCounts(num_layers=24, num_experts=16, num_experts_per_tok=4).has_all_pairs


GOOD = np.zeros((5, 2, 3), dtype=np.int64) + np.arange(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counts_for(GOOD[:, :1], 4), r"num_layers \(1\) must be at least 2"),
        (
            lambda: counts_for(GOOD, 4).update(GOOD[0]),
            r"expert_ids \(int64 \[2, 3\]\) must be integers \[tokens, 2, 3\]",
        ),
        (lambda: counts_for(GOOD, 4).update(GOOD // 2), r"expert_ids \(\[0, 0, 1\] in layer 0\) must differ"),
        (
            lambda: counts_for(GOOD, 4).merge(counts_for(GOOD, 5)),
            r"other.num_experts \(5\) must equal num_experts \(4\)",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
