"""Jaccard of layer pairs and its nulls against Python sets, closed forms, and invariances."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layer_blocks import layer_pair_means, layer_pairs
from pathmoe_eval.layers.layer_overlap import LayerOverlapCounts, jaccard_null_uniform, jaccard_null_uniform_ratio


def counts_for(num_experts, num_picks, router_of_layer):
    return LayerOverlapCounts(
        num_layers=len(router_of_layer),
        num_experts=num_experts,
        num_experts_per_tok=num_picks,
        router_of_layer=router_of_layer,
    )


def overlap(ids_NLK, num_experts, router_of_layer):
    counts = counts_for(num_experts, ids_NLK.shape[2], router_of_layer)
    counts.update(ids_NLK)
    return counts.result()


def jaccard(a, b):
    return len(set(a) & set(b)) / len(set(a) | set(b))


def nested(figure, num_layers):
    return tuple(tuple(figure(a, b) for b in range(num_layers)) for a in range(num_layers))


def brute_force(ids_NLK, num_experts, router_of_layer):
    """Every field, one pair of tokens at a time; independent layers pair each token with each."""
    layers, n, k = ids_NLK.transpose(1, 0, 2).tolist(), len(ids_NLK), ids_NLK.shape[2]
    every = [[(x, y) for x in a for y in b] for a in layers for b in layers]
    shared = [sum(len(set(x) & set(y)) for x, y in pairs) / n**2 for pairs in every]
    means = [sum(jaccard(x, y) for x, y in pairs) / n**2 for pairs in every]
    num_layers = len(layers)

    def same(a, b, figure):
        return sum(figure(x, y) for x, y in zip(layers[a], layers[b], strict=True)) / n

    squares = {
        "jaccard": nested(lambda a, b: same(a, b, jaccard), num_layers),
        "shared": nested(lambda a, b: same(a, b, lambda x, y: len(set(x) & set(y)) / k), num_layers),
        "jaccard_null_loads": nested(lambda a, b: means[a * num_layers + b], num_layers),
        "jaccard_null_loads_ratio": nested(
            lambda a, b: shared[a * num_layers + b] / (2 * k - shared[a * num_layers + b]), num_layers
        ),
        "shared_null": nested(lambda a, b: shared[a * num_layers + b] / k, num_layers),
    }
    if num_experts > 16:
        del squares["jaccard_null_loads"]
    pairs = layer_pairs(num_layers)
    return squares | {
        f"{name}_means": vars(layer_pair_means([figure[a][b] for a, b in pairs], pairs, router_of_layer))
        for name, figure in squares.items()
    }


@st.composite
def routings(draw):
    num_experts = draw(st.sampled_from([1, 2, 5, 16, 17, 33, 130]))
    num_picks = draw(st.integers(1, min(4, num_experts)))
    router_of_layer = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    num_tokens = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # experts that the layers agree on, and noise
    score_NLE = rng.random((num_tokens, 1, num_experts)) + rng.random((num_tokens, len(router_of_layer), num_experts))
    return np.argsort(score_NLE, axis=2)[:, :, :num_picks], num_experts, router_of_layer


@given(routings())
def test_equals_brute_force(case):
    result = overlap(*case)
    for name, expected in brute_force(*case).items():
        found = getattr(result, name)
        if name.endswith("_means"):
            assert vars(found) == {
                key: value if value is None else pytest.approx(value) for key, value in expected.items()
            }
        else:
            assert found == tuple(pytest.approx(row, rel=1e-12, abs=1e-12) for row in expected), name
    assert (result.jaccard_null_loads is None) == (result.jaccard_null_loads_means is None) == (case[1] > 16)
    assert result.num_tokens == len(case[0])


@given(routings(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    ids_NLK, num_experts, router_of_layer = case
    parts = count_in_parts(lambda: counts_for(num_experts, ids_NLK.shape[2], router_of_layer), data, ids_NLK)
    assert parts.result() == overlap(*case)


@given(routings())
def test_duplicated_tokens_change_no_mean(case):
    ids_NLK, *rest = case
    once, twice = overlap(ids_NLK, *rest), overlap(np.concatenate([ids_NLK, ids_NLK]), *rest)
    assert twice.jaccard == tuple(pytest.approx(row) for row in once.jaccard)
    assert twice.jaccard_null_loads_ratio == tuple(pytest.approx(row) for row in once.jaccard_null_loads_ratio)


@given(routings())
def test_rank_within_a_token_does_not_matter(case):
    ids_NLK, *rest = case
    assert overlap(ids_NLK[:, :, ::-1], *rest) == overlap(ids_NLK, *rest)


def test_copies_are_one_and_relabelling_moves_it():
    ids_NK = np.argsort(np.random.default_rng(0).random((300, 8)), axis=1)[:, :3]
    copies = overlap(np.stack([ids_NK] * 4, axis=1), 8, (0, 0, 1, 1))
    assert copies.jaccard == ((1.0,) * 4,) * 4
    shifted_NLK = np.stack([(ids_NK + 2 * layer) % 8 for layer in range(4)], axis=1)
    assert max(overlap(shifted_NLK, 8, (0, 0, 1, 1)).jaccard[0][1:]) < 0.5


@pytest.mark.parametrize(
    ("num_experts", "num_picks", "ratio", "mean"),
    [
        (16, 4, 0.143, 0.158),
        (64, 6, 0.049, 0.053),
        (64, 8, 0.067, 0.071),
        (128, 8, 0.0323, 0.0343),
        (256, 8, 0.0159, 0.0169),
    ],
)
def test_uniform_nulls_have_the_known_values(num_experts, num_picks, ratio, mean):
    digits = 3 if ratio > 0.04 else 4
    assert round(jaccard_null_uniform_ratio(num_experts, num_picks), digits) == ratio
    assert round(jaccard_null_uniform(num_experts, num_picks), digits) == mean


def test_all_sets_equally_often_give_the_uniform_nulls():
    sets = list(combinations(range(6), 3))
    ids_NLK = np.array([[a, b] for a in sets for b in sets])
    result = overlap(ids_NLK, 6, (0, 0))
    assert len(ids_NLK) == comb(6, 3) ** 2
    assert result.jaccard[0][1] == pytest.approx(result.jaccard_null_uniform, rel=1e-12)
    assert result.jaccard_null_loads[0][1] == pytest.approx(result.jaccard_null_uniform, rel=1e-12)
    assert result.jaccard_null_loads_ratio[0][1] == pytest.approx(result.jaccard_null_uniform_ratio, rel=1e-12)


def test_independent_layers_with_uneven_loads_tend_to_the_null_of_their_loads():
    gumbel_NLE = np.random.default_rng(1).gumbel(size=(60_000, 3, 12))
    result = overlap(np.argsort(gumbel_NLE + np.linspace(0, 3, 12), axis=2)[:, :, -4:], 12, (0, 1, 2))
    assert result.jaccard_means.adjacent == pytest.approx(result.jaccard_null_loads_means.adjacent, abs=0.002)
    assert result.jaccard_null_loads_means.adjacent > result.jaccard_null_uniform + 0.1
    assert result.shared_means.adjacent == pytest.approx(result.shared_null_means.adjacent, abs=0.002)


GOOD = np.zeros((5, 2, 3), dtype=np.int64) + np.arange(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counts_for(4, 3, (0, 1)).result(), r"^num_tokens \(0\) must be at least 1; "),
        (
            lambda: counts_for(4, 3, (0, 1)).update(GOOD + 2),
            r"expert_ids \(4\) must be at least 0 and below num_experts",
        ),
        (lambda: counts_for(4, 3, (0, 1)).update(GOOD // 2), r"expert_ids \(\[0, 0, 1\] in layer 0\) must differ"),
        (lambda: counts_for(4, 3, (0, 1)).merge(counts_for(5, 3, (0, 1))), r"other.num_experts \(5\) must equal"),
        (
            lambda: counts_for(4, 3, (0, 1)).merge(counts_for(4, 3, (0, 0))),
            r"other.router_of_layer \(\(0, 0\)\) must equal",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
