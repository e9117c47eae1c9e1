"""Load against counting by hand, its null against every outcome of small cases, and closed forms."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token, R simulated samples.

import json
import math
from collections import Counter
from dataclasses import asdict
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.experts.load import LoadCounts, uniform_counts


@st.composite
def routings(draw):
    """A model's numbers and distinct experts for each token and layer."""
    num_experts = draw(st.sampled_from([1, 2, 5, 16]))
    per_token = draw(st.integers(1, min(num_experts, 4)))
    num_tokens, num_layers = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    skew = draw(st.sampled_from([0.0, 1.0, 5.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = np.argsort(rng.random((num_tokens, num_layers, num_experts)) + skew * np.arange(num_experts), axis=-1)
    shape = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": per_token}
    return shape, order[..., :per_token].astype(np.uint8)


def counted(shape, *chunks):
    counts = LoadCounts(**shape)
    for chunk in chunks:
        counts.update(chunk)
    return counts


def brute_force(picks_of_layer, num_experts):
    """Every figure of one layer from the list of its picks."""
    counts = Counter(picks_of_layer)
    counts_E = [counts[expert] for expert in range(num_experts)]
    total = len(picks_of_layer)
    mean = total / num_experts
    bits = -math.fsum(c / total * math.log2(c / total) for c in counts_E if c)
    return {
        "counts": tuple(counts_E),
        "entropy_bits": bits,
        "max_over_mean": max(counts_E) / mean,
        "coefficient_of_variation": math.sqrt(math.fsum((c - mean) ** 2 for c in counts_E) / num_experts) / mean,
        "dead_experts": counts_E.count(0),
        "starved_experts": sum(c < 0.01 * mean for c in counts_E),
    }


@given(routings())
def test_equals_brute_force(case):
    shape, ids_NLK = case
    result = counted(shape, ids_NLK).result()
    assert result.num_tokens == len(ids_NLK)
    for balance, ranks in ((result.all_picks, shape["num_experts_per_tok"]), (result.first_picks, 1)):
        for layer in range(shape["num_layers"]):
            picks = [expert for token in ids_NLK[:, layer, :ranks].tolist() for expert in token]
            for name, value in brute_force(picks, shape["num_experts"]).items():
                assert getattr(balance, name)[layer] == pytest.approx(value, rel=1e-9, abs=1e-9), name
        for name in ("entropy_bits", "max_over_mean", "coefficient_of_variation", "dead_experts", "starved_experts"):
            assert getattr(balance, f"mean_{name}") == pytest.approx(np.mean(getattr(balance, name)))
        if shape["num_experts"] == 1:
            assert balance.entropy_share is balance.mean_entropy_share is None
        else:
            shares = [bits / math.log2(shape["num_experts"]) for bits in balance.entropy_bits]
            assert balance.entropy_share == pytest.approx(shares)
            assert balance.mean_entropy_share == pytest.approx(np.mean(shares))


@given(routings(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    shape, ids_NLK = case
    assert count_in_parts(lambda: counted(shape), data, ids_NLK).result() == counted(shape, ids_NLK).result()


@given(routings(), st.integers(0, 2**32 - 1))
def test_relabelling_permutes_counts_and_leaves_every_figure(case, seed):
    shape, ids_NLK = case
    rng = np.random.default_rng(seed)
    names_LE = np.stack([rng.permutation(shape["num_experts"]) for _ in range(shape["num_layers"])])
    relabelled_NLK = np.stack([names_E[ids_NLK[:, layer]] for layer, names_E in enumerate(names_LE)], axis=1)
    ours, theirs = asdict(counted(shape, ids_NLK).result()), asdict(counted(shape, relabelled_NLK).result())
    for kind in ("all_picks", "first_picks"):
        counts_LE, relabelled_LE = np.array(ours[kind].pop("counts")), np.array(theirs[kind].pop("counts"))
        np.testing.assert_array_equal(np.take_along_axis(relabelled_LE, names_LE, axis=1), counts_LE)
    assert ours == theirs


@pytest.mark.parametrize("per_token", [1, 2, 4])
def test_closed_forms(per_token):
    shape = {"num_layers": 2, "num_experts": 8, "num_experts_per_tok": per_token}
    balanced_NK = (np.arange(80)[:, None] + np.arange(per_token)) % 8
    collapsed_NK = np.broadcast_to(np.arange(per_token), (80, per_token))
    result = counted(shape, np.stack([balanced_NK, collapsed_NK], axis=1)).result()
    assert result.all_picks.entropy_bits == pytest.approx([3, math.log2(per_token)])
    assert result.all_picks.max_over_mean == pytest.approx([1, 8 / per_token])
    assert result.all_picks.coefficient_of_variation == pytest.approx([0, math.sqrt(8 / per_token - 1)])
    assert result.all_picks.dead_experts == (0, 8 - per_token)
    assert result.first_picks.max_over_mean == (1, 8)


def test_starved_is_below_one_percent_of_an_equal_share():
    # of 2000 tokens on two experts an equal share is 1000
    def starved(num_picks):
        ids_N = np.repeat([0, 1], [2000 - num_picks, num_picks])
        shape = {"num_layers": 1, "num_experts": 2, "num_experts_per_tok": 1}
        return counted(shape, ids_N[:, None, None]).result().all_picks

    assert (starved(10).starved_experts, starved(9).starved_experts) == ((0,), (1,))
    assert starved(9).dead_experts == (0,)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "per_token"), [(1, 3, 2), (2, 4, 2), (3, 3, 1), (2, 4, 3), (2, 3, 3)]
)
def test_the_null_has_the_distribution_of_uniform_sets(num_tokens, num_experts, per_token):
    outcomes = Counter()
    for sets in product(combinations(range(num_experts), per_token), repeat=num_tokens):
        picks = Counter(expert for chosen in sets for expert in chosen)
        outcomes[tuple(picks[expert] for expert in range(num_experts))] += 1
    samples = 40_000
    drawn = Counter(map(tuple, uniform_counts(num_tokens, num_experts, per_token, samples, 0).tolist()))
    assert set(drawn) <= set(outcomes)
    for outcome, weight in outcomes.items():
        p = weight / sum(outcomes.values())
        assert drawn[outcome] / samples == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / samples) + 1e-12)


def test_the_null_of_many_tokens_has_the_closed_form_spread():
    num_tokens, num_experts, per_token = 7_180_000, 16, 4
    counts_RE = uniform_counts(num_tokens, num_experts, per_token, 4000, 1)
    assert (counts_RE.sum(axis=1) == num_tokens * per_token).all()
    p = per_token / num_experts
    assert np.cov(counts_RE.T).diagonal() == pytest.approx([num_tokens * p * (1 - p)] * num_experts, rel=0.15)
    squared_variation_R = (counts_RE.std(axis=1) / counts_RE.mean(axis=1)) ** 2
    assert squared_variation_R.mean() == pytest.approx((1 - p) / (num_tokens * p), rel=0.03)


def test_uniform_routing_scores_as_the_null():
    rng = np.random.default_rng(2)
    ids_NLK = np.argsort(rng.random((400, 150, 8)), axis=-1)[..., :2]
    result = counted({"num_layers": 150, "num_experts": 8, "num_experts_per_tok": 2}, ids_NLK).result()
    for balance in (result.all_picks, result.first_picks):
        assert balance.mean_max_over_mean - 1 == pytest.approx(balance.max_over_mean_null - 1, rel=0.1)
        assert 3 - balance.mean_entropy_bits == pytest.approx(3 - balance.entropy_bits_null, rel=0.15)
        assert balance.mean_coefficient_of_variation == pytest.approx(balance.coefficient_of_variation_null, rel=0.1)
        assert balance.dead_experts_null == 0


def test_the_null_says_when_a_sample_is_too_small_for_dead_experts():
    shape = {"num_layers": 1, "num_experts": 64, "num_experts_per_tok": 2}
    null = counted(shape, np.array([[[0, 1]]] * 50)).result().all_picks.dead_experts_null
    assert null == pytest.approx(64 * (1 - 2 / 64) ** 50, rel=0.05)


def test_the_result_is_json():
    shape = {"num_layers": 1, "num_experts": 2, "num_experts_per_tok": 1}
    record = asdict(counted(shape, np.zeros((3, 1, 1), dtype=np.uint8)).result())
    assert json.loads(json.dumps(record, allow_nan=False))["all_picks"]["counts"] == [[3, 0]]


def test_no_token_is_named_in_one_line():
    with pytest.raises(ValueError, match=r"^num_tokens \(0\) must be at least 1; ") as error:
        LoadCounts(num_layers=1, num_experts=2, num_experts_per_tok=1).result()
    assert "\n" not in str(error.value)
