"""Mutual information of layer pairs against token-by-token entropies, closed forms, and invariances."""

# Shapes: N tokens, L MoE layers, P pairs of layers, E experts, K experts per token.

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layer_blocks import layer_pair_means, layer_pairs
from pathmoe_eval.layers import joint_counts
from pathmoe_eval.layers.information import layer_information
from pathmoe_eval.layers.joint_counts import JointCounts


def information(path_ids_NL, router_of_layer=None):
    num_experts, num_layers = int(path_ids_NL.max()) + 1, path_ids_NL.shape[1]
    counts = JointCounts(num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=1)
    counts.update(path_ids_NL[:, :, None])
    return layer_information(counts, router_of_layer or range(num_layers))


def entropies(symbols):
    """Plug-in and Miller-Madow entropy in bits."""
    counts, n = Counter(symbols), len(symbols)
    plug_in = -math.fsum(c / n * math.log2(c / n) for c in counts.values())
    return np.array([plug_in, plug_in + (len(counts) - 1) / (2 * n * math.log(2))])


@st.composite
def paths(draw):
    shape = draw(st.tuples(st.integers(1, 25), st.integers(2, 4)))
    num_experts = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    is_kept_NL = rng.random(shape) < draw(st.floats(0, 1))
    return np.where(is_kept_NL, rng.integers(0, num_experts, (shape[0], 1)), rng.integers(0, num_experts, shape))


def close(values):
    return tuple(value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9) for value in values)


@given(paths(), st.booleans())
def test_equals_brute_force(path_ids_NL, only_adjacent):
    columns, num_layers = path_ids_NL.T.tolist(), path_ids_NL.shape[1]
    router_of_layer = tuple(layer // 2 for layer in range(num_layers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_counts, "_MAX_CELLS", 0 if only_adjacent else 1 << 25)
        result = information(path_ids_NL, router_of_layer)
    entropy = [entropies(column) for column in columns]
    bits, normalised = {}, {}
    for a in range(num_layers):
        for b in range(num_layers):
            bits[a, b] = entropy[a] + entropy[b] - entropies(list(zip(columns[a], columns[b], strict=True)))
            smaller = min(entropy[a][0], entropy[b][0])
            normalised[a, b] = bits[a, b][0] / smaller if smaller > 0 else None
    near = [(layer, layer + 1) for layer in range(num_layers - 1)]
    assert result.num_tokens == len(path_ids_NL)
    assert result.entropy_bits == close(plug_in for plug_in, _ in entropy)
    assert result.adjacent_bits == close(bits[pair][0] for pair in near)
    assert result.adjacent_corrected_bits == close(bits[pair][1] for pair in near)
    assert result.adjacent_normalised == close(normalised[pair] for pair in near)
    pairs = near
    if only_adjacent and num_layers > 2:
        assert result.corrected_bits is result.normalised is None
    else:
        pairs = layer_pairs(num_layers)
        layers = range(num_layers)
        assert result.corrected_bits == tuple(close(bits[a, b][1] for b in layers) for a in layers)
        assert result.normalised == tuple(close(normalised[a, b] for b in layers) for a in layers)
    for found, values in (
        (result.corrected_bits_means, [bits[pair][1] for pair in pairs]),
        (result.normalised_means, [normalised[pair] for pair in pairs]),
    ):
        expected = vars(layer_pair_means(values, pairs, router_of_layer))
        assert tuple(vars(found).values()) == close(expected.values())


@given(paths(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_per_layer_changes_nothing(path_ids_NL, seed):
    rng, num_experts = np.random.default_rng(seed), int(path_ids_NL.max()) + 1
    relabelled_NL = np.stack([rng.permutation(num_experts)[column] for column in path_ids_NL.T], axis=1)
    ours, theirs = information(path_ids_NL), information(relabelled_NL)
    for name in ("adjacent_bits", "adjacent_corrected_bits", "adjacent_normalised", "adjacent_bits_null"):
        assert getattr(theirs, name) == close(getattr(ours, name)), name
    assert theirs.adjacent_bits_null_highest == close(ours.adjacent_bits_null_highest)
    assert theirs.corrected_bits == tuple(close(row) for row in ours.corrected_bits)


@given(paths())
def test_duplicated_tokens_change_no_plug_in_figure(path_ids_NL):
    once, twice = information(path_ids_NL), information(np.repeat(path_ids_NL, 2, axis=0))
    assert twice.adjacent_bits == close(once.adjacent_bits)
    assert twice.normalised == tuple(close(row) for row in once.normalised)


def test_relabelled_copies_share_all_they_have():
    path_ids_N = np.arange(60) % 6
    result = information(np.stack([path_ids_N, (path_ids_N + 1) % 6, 5 - path_ids_N], axis=1))
    assert result.adjacent_bits == close([math.log2(6)] * 2)
    assert result.adjacent_normalised == close([1.0, 1.0])
    assert result.normalised_means.adjacent == pytest.approx(1.0)
    assert max(result.adjacent_bits_null_highest) < 1.0


def test_independent_layers_share_what_permuted_tokens_share():
    num_tokens, num_experts = 4000, 8
    result = information(np.random.default_rng(0).integers(0, num_experts, (num_tokens, 60)))
    bias = (num_experts - 1) ** 2 / (2 * num_tokens * math.log(2))
    assert np.mean(result.adjacent_bits) == pytest.approx(bias, rel=0.1)
    assert np.mean(result.adjacent_bits_null) == pytest.approx(bias, rel=0.05)
    assert abs(result.corrected_bits_means.adjacent) < 0.1 * bias
    # one figure in 20 is above the highest of 19 permutations
    is_above = np.array(result.adjacent_bits) > result.adjacent_bits_null_highest
    assert result.num_permutations == 19
    assert 0 <= is_above.mean() <= 0.15


def test_information_of_independent_layers_goes_to_zero_with_the_tokens():
    path_ids_NL = np.random.default_rng(1).choice(4, size=(100_000, 2), p=[0.6, 0.2, 0.1, 0.1])
    few, many = information(path_ids_NL[:1000]), information(path_ids_NL)
    assert many.adjacent_bits[0] < few.adjacent_bits[0] / 10
    assert many.adjacent_bits[0] < 3e-4


def test_bad_input_is_named_in_one_line():
    counts = JointCounts(num_layers=2, num_experts=4, num_experts_per_tok=1)
    with pytest.raises(ValueError, match=r"^num_tokens \(0\) must be at least 1; "):
        layer_information(counts, (0, 1))
    with pytest.raises(
        ValueError, match=r"^router_of_layer \(3 entries\) must have one for each of num_layers \(2\); "
    ):
        layer_information(counts, (0, 1, 2))
