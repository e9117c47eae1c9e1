"""Vocabulary specialisation against lists of experts per id, OLMoE's way of averaging, and its null by chance."""

# Shapes: N tokens, S sequences, L MoE layers, V token ids, E experts, K experts per token.

import json
from collections import Counter, defaultdict
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.experts.token_ids import NO_ID
from pathmoe_eval.experts.vocabulary_specialisation import VocabularyCounts


@st.composite
def traces(draw):
    """What to count, distinct experts of each token and layer, and an id for most tokens."""
    num_experts = draw(st.sampled_from([1, 2, 6]))
    per_token = draw(st.integers(1, min(num_experts, 3)))
    num_tokens, num_layers = draw(st.integers(1, 60)), draw(st.integers(1, 4))
    vocab_size = draw(st.sampled_from([1, 4, 50]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids_NLK = np.argsort(rng.random((num_tokens, num_layers, num_experts)), axis=-1)[..., :per_token].astype(np.uint8)
    ids_N = rng.integers(0, vocab_size, num_tokens)
    ids_N[1:][rng.random(num_tokens - 1) < 0.2] = NO_ID
    what = {
        "num_layers": num_layers,
        "num_experts": num_experts,
        "num_experts_per_tok": per_token,
        "vocab_size": vocab_size,
        "num_ranks": draw(st.sampled_from([1, per_token])),
        "layers": draw(st.lists(st.integers(0, num_layers - 1), min_size=1, unique=True)),
    }
    return what, ids_NLK, ids_N


def counted(what, *chunks):
    counts = VocabularyCounts(**what)
    for chunk in chunks:
        counts.update(*chunk)
    return counts


def experts_by_id(ids_NLK, ids_N, layer, num_ranks):
    experts_of = defaultdict(list)
    for token_id, experts in zip(ids_N.tolist(), ids_NLK[:, layer, :num_ranks].tolist(), strict=True):
        if token_id != NO_ID:
            experts_of[token_id].append(experts)
    return experts_of


def our_means(ids_NLK, ids_N, layer, num_ranks, min_occurrences):
    """Macro and weighted mean of the share of an id's most frequent expert; None without ids."""
    shares, weights = [], []
    for occurrences in experts_by_id(ids_NLK, ids_N, layer, num_ranks).values():
        if len(occurrences) >= min_occurrences:
            counts = Counter(expert for experts in occurrences for expert in experts)
            shares.append(max(counts.values()) / len(occurrences))
            weights.append(len(occurrences))
    return (np.mean(shares), np.average(shares, weights=weights)) if shares else (None, None)


def script_mean(ids_NLK, ids_N, layer, num_ranks):
    """The mean as the script's steps give it: picks of all occurrences in one list, divided by floor(picks / k)."""
    shares = []
    for occurrences in experts_by_id(ids_NLK, ids_N, layer, num_ranks).values():
        picks = [expert for experts in occurrences for expert in experts]
        shares.append(Counter(picks).most_common(1)[0][1] / (len(picks) // num_ranks))
    return np.mean(shares)


@given(traces(), st.integers(1, 12))
def test_equals_brute_force(case, min_occurrences):
    what, ids_NLK, ids_N = case
    result = counted(what, (ids_NLK, ids_N)).result(min_occurrences=min_occurrences)
    occurrences = Counter(ids_N[ids_N != NO_ID].tolist())
    assert result.layers == tuple(what["layers"])
    assert (result.num_tokens, result.num_ids) == (sum(occurrences.values()), len(occurrences))
    assert result.num_ids_once == list(occurrences.values()).count(1)
    assert result.num_ids_in_means == sum(count >= min_occurrences for count in occurrences.values())
    assert result.share_null == what["num_ranks"] / what["num_experts"]
    for place, layer in enumerate(what["layers"]):
        expected = our_means(ids_NLK, ids_N, layer, what["num_ranks"], min_occurrences)
        for kind, value in zip(("macro", "weighted"), expected, strict=True):
            found, null = getattr(result, f"{kind}_share"), getattr(result, f"{kind}_share_null")
            assert found is None if value is None else found[place] == pytest.approx(value)
            assert (null is None) == (value is None or what["num_ranks"] > 1)
        in_lists = sum(vocabulary.num_ids for vocabulary in result.experts[place])
        assert in_lists == result.num_ids_in_means
    for name in ("macro_share", "macro_share_null"):
        values, mean = getattr(result, name), getattr(result, f"mean_{name}")
        assert mean is None if values is None else mean == pytest.approx(np.mean(values))


@given(traces())
def test_olmoe_script_takes_every_id(case):
    what, ids_NLK, ids_N = case
    result = counted(what, (ids_NLK, ids_N)).result(olmoe_script=True)
    assert (result.min_occurrences, result.num_ids_in_means) == (1, result.num_ids)
    for place, layer in enumerate(what["layers"]):
        expected = script_mean(ids_NLK, ids_N, layer, what["num_ranks"])
        assert result.macro_share[place] == pytest.approx(expected)


@pytest.mark.parametrize("olmoe_script", [False, True])
def test_the_null_is_that_of_ids_in_random_order(olmoe_script):
    rng = np.random.default_rng(2)
    ids_NLK = np.minimum(rng.geometric(0.4, (300, 2, 1)), 5) - 1
    ids_N = np.minimum(rng.zipf(1.5, 300), 40) - 1
    what = {"num_layers": 2, "num_experts": 5, "num_experts_per_tok": 1, "vocab_size": 40, "num_ranks": 1}
    counts = counted(what, (ids_NLK, ids_N))
    num_draws, least = 400, 1 if olmoe_script else 4
    drawn = [counts.result(min_occurrences=4, olmoe_script=olmoe_script, seed=seed) for seed in range(num_draws)]
    shuffled = [
        [our_means(ids_NLK, rng.permutation(ids_N), layer, 1, least) for layer in (0, 1)] for _ in range(num_draws)
    ]
    for place, name in enumerate(("macro_share_null", "weighted_share_null")):
        found, wanted = np.array([getattr(one, name) for one in drawn]), np.array(shuffled)[..., place]
        error = wanted.std(axis=0) * (2 / num_draws) ** 0.5
        assert (abs(found.mean(axis=0) - wanted.mean(axis=0)) < 4 * error).all()
        assert found.std(axis=0) == pytest.approx(wanted.std(axis=0), rel=0.2)


@given(traces())
def test_share_is_equation_8(case):
    what, ids_NLK, ids_N = case
    counts = counted(what, (ids_NLK, ids_N))
    for layer in what["layers"]:
        share_VE = np.zeros((what["vocab_size"], what["num_experts"]))
        for token_id, occurrences in experts_by_id(ids_NLK, ids_N, layer, what["num_ranks"]).items():
            for expert in range(what["num_experts"]):
                share_VE[token_id, expert] = sum(expert in experts for experts in occurrences) / len(occurrences)
        np.testing.assert_array_equal(counts.share_VE(layer), share_VE)


@given(traces(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    what, ids_NLK, ids_N = case
    arrays = (ids_NLK, ids_N)
    parts = count_in_parts(lambda: counted(what), data, *arrays)
    assert parts.result(min_occurrences=1) == counted(what, arrays).result(min_occurrences=1)


@given(traces(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_leaves_the_means(case, seed):
    what, ids_NLK, ids_N = case
    rng = np.random.default_rng(seed)
    names_LE = np.stack([rng.permutation(what["num_experts"]) for _ in range(what["num_layers"])])
    relabelled_NLK = np.stack([names_E[ids_NLK[:, layer]] for layer, names_E in enumerate(names_LE)], axis=1)
    ours, theirs = (counted(what, (ids, ids_N)).result(min_occurrences=2) for ids in (ids_NLK, relabelled_NLK))
    for name in ("macro_share", "macro_share_null", "weighted_share", "weighted_share_null"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_random_experts_specialise_as_the_null_and_rare_ids_far_above_chance():
    rng = np.random.default_rng(0)
    ids_NLK = rng.integers(0, 8, (20_000, 1, 1))
    ids_N = np.minimum(rng.zipf(1.3, 20_000), 4999)
    what = {"num_layers": 1, "num_experts": 8, "num_experts_per_tok": 1, "vocab_size": 5000, "num_ranks": 1}
    counts = counted(what, (ids_NLK, ids_N))
    ours, script = counts.result(), counts.result(olmoe_script=True)
    assert ours.macro_share == pytest.approx(ours.macro_share_null, abs=0.02)
    assert ours.weighted_share == pytest.approx(ours.weighted_share_null, abs=0.01)
    assert ours.weighted_share[0] < ours.macro_share[0]
    assert script.macro_share == pytest.approx(script.macro_share_null, abs=0.02)
    assert script.macro_share[0] > ours.macro_share[0] + 0.2 > ours.share_null + 0.2


def test_an_expert_decided_by_the_next_id():
    rng = np.random.default_rng(1)
    tokens_N = rng.integers(0, 16, 5000)
    starts_S1 = np.arange(0, 5001, 100)
    next_N = np.append(tokens_N[1:], NO_ID)
    next_N[starts_S1[1:] - 1] = NO_ID
    ids_NLK = np.where(next_N == NO_ID, 0, next_N % 4)[:, None, None]
    what = {"num_layers": 1, "num_experts": 4, "num_experts_per_tok": 1, "vocab_size": 16, "num_ranks": 1}
    by_next = counted(what, (ids_NLK, next_N)).result()
    by_input = counted(what, (ids_NLK, tokens_N)).result()
    assert by_next.macro_share == by_next.weighted_share == (1.0,)
    assert by_next.num_tokens == 5000 - 50
    assert by_input.macro_share == pytest.approx(by_input.macro_share_null, abs=0.03)
    assert [[share.token_id % 4 for share in expert.top_ids] for expert in by_next.experts[0]] == [
        [e] * 4 for e in range(4)
    ]
    assert json.loads(json.dumps(asdict(by_next), allow_nan=False))["macro_share"] == [1.0]


@pytest.mark.parametrize(
    ("num_layers", "vocab_size", "layers"), [(4, 1000, (0, 1, 2, 3)), (16, 50_304, (7,)), (3, 10**6, (1,))]
)
def test_all_layers_by_default_where_they_fit(num_layers, vocab_size, layers):
    what = {"num_layers": num_layers, "num_experts": 64, "num_experts_per_tok": 1, "num_ranks": 1}
    counts = VocabularyCounts(**what | {"num_experts": 16, "vocab_size": vocab_size})
    assert counts.layers == layers


def test_more_picks_of_an_id_than_32_bits_hold():
    counts = counts_with(num_ranks=1)
    counts.update(IDS, TOKENS)
    for _ in range(32):
        counts.merge(counts)
    result = counts.result()
    assert result.num_tokens == 3 << 32
    assert result.macro_share == (1.0, 1.0)
    assert result.macro_share_null == (1.0, 1.0)


IDS, TOKENS = np.array([[[0, 1], [2, 3]]] * 3), np.array([5, 6, 6])


def counts_with(**changes):
    what = {"num_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 7, "num_ranks": 2}
    return VocabularyCounts(**what | changes)


def result_of(ids_N, **options):
    counts = counts_with()
    counts.update(IDS, ids_N)
    return counts.result(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counts_with(vocab_size=0), r"vocab_size \(0\) must be at least 1"),
        (lambda: counts_with(num_ranks=0), r"num_ranks \(0\) must be between 1 and num_experts_per_tok \(2\)"),
        (lambda: counts_with(num_ranks=3), r"num_ranks \(3\) must be between 1 and num_experts_per_tok \(2\)"),
        (lambda: counts_with(layers=[2]), r"layers \(2\) must be different and below num_layers \(2\)"),
        (lambda: counts_with(layers=[-1]), r"layers \(-1\) must be different and below num_layers \(2\)"),
        (lambda: counts_with(layers=[1, 1]), r"layers \(1, 1\) must be different and below num_layers \(2\)"),
        (lambda: result_of(TOKENS + 1), r"ids \(7\) must be below vocab_size \(7\)"),
        (lambda: result_of(TOKENS - 8), r"ids \(-3\) must be below vocab_size \(7\) and not negative"),
        (lambda: result_of(TOKENS[:2]), r"ids \(int64 \[2\]\) must be integers \[3\]; pass one for each"),
        (lambda: result_of(TOKENS * 1.0), r"ids \(float64 \[3\]\) must be integers \[3\]"),
        (lambda: result_of(TOKENS, min_occurrences=0), r"min_occurrences \(0\) must be at least 1"),
        (lambda: counts_with().result(), r"^num_tokens \(0\) must be at least 1; "),
        (lambda: counts_with().merge(counts_with(vocab_size=8)), r"other.vocab_size \(8\) must equal vocab_size \(7\)"),
        (lambda: counts_with().merge(counts_with(num_ranks=1)), r"other.num_ranks \(1\) must equal num_ranks \(2\)"),
        (
            lambda: counts_with().merge(counts_with(layers=[1])),
            r"other.layers \(\(1,\)\) must equal layers \(\(0, 1\)\)",
        ),
        (lambda: counts_with().merge(counts_with(num_layers=3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
