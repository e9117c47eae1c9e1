"""Co-activation against pairs counted one token at a time, with OLMoE's adjacent ranks beside, and closed forms."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

import json
from dataclasses import asdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.experts.coactivation import CoactivationCounts, coactivation_share


@st.composite
def routings(draw):
    """A model's numbers and distinct experts for each token and layer."""
    num_experts = draw(st.sampled_from([2, 3, 6, 17, 300]))
    per_token = draw(st.integers(2, min(num_experts, 5)))
    num_tokens, num_layers = draw(st.integers(1, 25)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    skew_E = draw(st.sampled_from([0.0, 0.2])) * np.arange(num_experts)
    order = np.argsort(rng.random((num_tokens, num_layers, num_experts)) + skew_E, axis=-1)
    shape = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": per_token}
    return shape, order[..., :per_token].astype(np.uint16)


def counted(shape, *chunks, **options):
    counts = CoactivationCounts(**shape, **options)
    for chunk in chunks:
        counts.update(chunk)
    return counts


def brute_force(sets, num_experts, olmoe_script):
    """N(Ei, Ej), with N(Ei) on the diagonal, from the ranked experts of each token of a layer."""
    pairs_EE = np.zeros((num_experts, num_experts), dtype=int)
    for ranked in sets:
        for expert in ranked:
            pairs_EE[expert, expert] += 1
        if olmoe_script:
            pairs = [(ranked[rank], ranked[rank + 1]) for rank in range(len(ranked) - 1)]
        else:
            pairs = combinations(ranked, 2)
        for a, b in pairs:
            pairs_EE[a, b] += 1
            pairs_EE[b, a] += 1
    return pairs_EE


@given(routings(), st.booleans())
def test_equals_brute_force(case, olmoe_script):
    shape, ids_NLK = case
    counts = counted(shape, ids_NLK, olmoe_script=olmoe_script)
    result = counts.result()
    assert (result.num_tokens, result.olmoe_script) == (len(ids_NLK), olmoe_script)
    num_experts = shape["num_experts"]
    for layer in range(shape["num_layers"]):
        pairs_EE = brute_force(ids_NLK[:, layer].tolist(), num_experts, olmoe_script)
        np.testing.assert_array_equal(counts.pairs_LEE[layer], pairs_EE)
        used = [expert for expert in range(num_experts) if pairs_EE[expert, expert]]
        strongest = [max(pairs_EE[a, b] / pairs_EE[a, a] for b in range(num_experts) if b != a) for a in used]
        assert result.strongest_share[layer] == pytest.approx(np.mean(strongest))
        ordered = sorted(
            (-pairs_EE[a, b] / pairs_EE[a, a], -pairs_EE[a, b], a, b)
            for a in used
            for b in used
            if a != b and pairs_EE[a, b]
        )
        found = result.top_pairs[layer]
        assert [(-p.share, -p.num_tokens, p.expert, p.partner) for p in found] == ordered[:10]
        for pair in found:
            of_all = pairs_EE[pair.partner, pair.partner] / len(ids_NLK)
            assert pair.lift == pytest.approx(pair.share / of_all)
    assert result.mean_strongest_share == pytest.approx(np.mean(result.strongest_share))


@given(routings(), st.booleans())
def test_shares_average_to_the_null(case, olmoe_script):
    # whatever the router does: a token's experts have k - 1 partners, or 2 (k - 1) / k adjacent ones
    shape, ids_NLK = case
    counts = counted(shape, ids_NLK, olmoe_script=olmoe_script)
    num_experts = shape["num_experts"]
    for pairs_EE in counts.pairs_LEE:
        picks_E = pairs_EE.diagonal()
        off_diagonal_E = coactivation_share(pairs_EE).sum(axis=1) - (picks_E > 0)
        average = np.average(off_diagonal_E / (num_experts - 1), weights=picks_E)
        assert average == pytest.approx(counts.result().share_null)


@given(routings(), st.booleans(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, olmoe_script, data):
    shape, ids_NLK = case
    parts = count_in_parts(lambda: counted(shape, olmoe_script=olmoe_script), data, ids_NLK)
    assert parts.result() == counted(shape, ids_NLK, olmoe_script=olmoe_script).result()


@given(routings(), st.integers(0, 2**32 - 1))
def test_relabelling_permutes_pairs(case, seed):
    shape, ids_NLK = case
    rng = np.random.default_rng(seed)
    names_LE = np.stack([rng.permutation(shape["num_experts"]) for _ in range(shape["num_layers"])])
    relabelled_NLK = np.stack([names_E[ids_NLK[:, layer]] for layer, names_E in enumerate(names_LE)], axis=1)
    ours, theirs = counted(shape, ids_NLK), counted(shape, relabelled_NLK)
    for layer, names_E in enumerate(names_LE):
        np.testing.assert_array_equal(theirs.pairs_LEE[layer][np.ix_(names_E, names_E)], ours.pairs_LEE[layer])
    assert theirs.result().strongest_share == ours.result().strongest_share


@given(routings(), st.randoms())
def test_ranks_matter_only_to_the_script(case, random):
    shape, ids_NLK = case
    reranked_NLK = ids_NLK[..., random.sample(range(ids_NLK.shape[2]), ids_NLK.shape[2])]
    np.testing.assert_array_equal(counted(shape, reranked_NLK).pairs_LEE, counted(shape, ids_NLK).pairs_LEE)
    if shape["num_experts_per_tok"] == 2:
        script = counted(shape, ids_NLK, olmoe_script=True)
        np.testing.assert_array_equal(script.pairs_LEE, counted(shape, ids_NLK).pairs_LEE)


@pytest.mark.parametrize(("olmoe_script", "partners"), [(False, 3), (True, 1.5)])
def test_uniform_routing_shares_and_lifts_as_the_null(olmoe_script, partners):
    ids_NLK = np.argsort(np.random.default_rng(0).random((40_000, 1, 8)), axis=-1)[..., :4]
    shape = {"num_layers": 1, "num_experts": 8, "num_experts_per_tok": 4}
    result = counted(shape, ids_NLK, olmoe_script=olmoe_script).result()
    assert result.share_null == pytest.approx(partners / 7)
    for pair in result.top_pairs[0]:
        assert pair.share == pytest.approx(result.share_null, rel=0.05)
        assert pair.lift == pytest.approx(result.lift_null, rel=0.05)


def test_experts_that_always_go_together():
    ids_NLK = np.array([[[0, 1]], [[1, 0]], [[2, 3]], [[3, 2]]])
    result = counted({"num_layers": 1, "num_experts": 5, "num_experts_per_tok": 2}, ids_NLK).result()
    assert [(p.expert, p.partner, p.share, p.lift) for p in result.top_pairs[0]] == [
        (0, 1, 1.0, 2.0),
        (1, 0, 1.0, 2.0),
        (2, 3, 1.0, 2.0),
        (3, 2, 1.0, 2.0),
    ]
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["strongest_share"] == [1.0]


def counts_with(**changes):
    return CoactivationCounts(**{"num_layers": 2, "num_experts": 4, "num_experts_per_tok": 2} | changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counts_with(num_experts_per_tok=1), r"num_experts_per_tok \(1\) must be at least 2; co-activation"),
        (lambda: counts_with().update(np.array([[[0, 1], [2, 2]]])), r"expert_ids \(an expert twice .* of layer 1\)"),
        (lambda: counts_with().merge(counts_with(olmoe_script=True)), r"other.olmoe_script \(True\) must equal olmoe"),
        (lambda: counts_with().merge(counts_with(num_layers=3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
        (lambda: counts_with().result(), r"^num_tokens \(0\) must be at least 1; "),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_refused_chunk_leaves_the_counts_as_they_were():
    counts = counts_with()
    with pytest.raises(ValueError, match="an expert twice"):
        counts.update(np.array([[[0, 1], [2, 2]]]))
    assert counts.num_tokens == counts.pairs_LEE.sum() == 0
