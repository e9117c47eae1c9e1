"""Router scores against scalar arithmetic one token at a time, exact quantiles, closed forms and invariances."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.experts.router_scores import MARGIN_QUANTILES, RouterScoreSums

FIGURES = ("entropy_bits", "confidence", "chosen_mass", "margin_logits", "margin_scores")


@st.composite
def routers(draw):
    """A model's numbers, logits, and a choice of experts that need not be that of the highest logits."""
    num_experts = draw(st.sampled_from([1, 2, 6, 16]))
    per_token = draw(st.integers(1, min(num_experts, 4)))
    num_tokens, num_layers = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 0.01, 1.0, 50.0]))
    logits_NLE = scale * rng.standard_normal((num_tokens, num_layers, num_experts)).astype(np.float32)
    bias = draw(st.sampled_from([0.0, 2.0])) * rng.random(num_experts)
    ids_NLK = np.argsort(-(logits_NLE + bias), axis=-1)[..., :per_token].astype(np.uint8)
    shape = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": per_token}
    return shape | {"score_function": draw(st.sampled_from(["softmax", "sigmoid"]))}, logits_NLE, ids_NLK


def summed(model, *chunks):
    sums = RouterScoreSums(**model)
    for logits_NLE, ids_NLK in chunks:
        sums.update(logits_NLE, ids_NLK)
    return sums


def brute_force(logits, chosen, score_function):
    """The five figures of one token in one layer; no margin where all experts are chosen."""
    raw = [math.exp(x - max(logits)) if score_function == "softmax" else 1 / (1 + math.exp(-x)) for x in logits]
    scores = [value / math.fsum(raw) for value in raw]
    by_logit, by_score = sorted(logits, reverse=True), sorted(scores, reverse=True)
    k = len(chosen)
    return {
        "entropy_bits": -math.fsum(p * math.log2(p) for p in scores if p),
        "confidence": max(scores),
        "chosen_mass": math.fsum(scores[expert] for expert in chosen),
        "margin_logits": by_logit[k - 1] - by_logit[k] if k < len(logits) else None,
        "margin_scores": by_score[k - 1] - by_score[k] if k < len(logits) else None,
    }


def assert_alike(ours, theirs, rel, abs):
    for name in FIGURES:
        value, other = getattr(ours, name), getattr(theirs, name)
        assert other is None if value is None else other == pytest.approx(value, rel=rel, abs=abs), name


@given(routers())
def test_equals_brute_force(case):
    model, logits_NLE, ids_NLK = case
    result = summed(model, (logits_NLE, ids_NLK)).result()
    assert (result.num_tokens, result.score_function) == (len(ids_NLK), model["score_function"])
    num_experts, per_token = model["num_experts"], model["num_experts_per_tok"]
    assert result.entropy_bits_null == math.log2(num_experts)
    assert (result.confidence_null, result.chosen_mass_null) == (1 / num_experts, per_token / num_experts)
    if per_token == num_experts:
        for name in ("margin_logits", "margin_scores", "margin_logits_quantiles"):
            assert getattr(result, name) is None
        assert result.mean_margin_logits is result.mean_margin_scores is None
    for layer in range(model["num_layers"]):
        tokens = [
            brute_force(logits, chosen, model["score_function"])
            for logits, chosen in zip(logits_NLE[:, layer].tolist(), ids_NLK[:, layer].tolist(), strict=True)
        ]
        for name in FIGURES if per_token < num_experts else FIGURES[:3]:
            expected = math.fsum(token[name] for token in tokens) / len(tokens)
            assert getattr(result, name)[layer] == pytest.approx(expected, rel=1e-9, abs=1e-12), name
    for name in FIGURES if per_token < num_experts else FIGURES[:3]:
        assert getattr(result, f"mean_{name}") == pytest.approx(np.mean(getattr(result, name)))


@given(routers())
def test_quantiles_are_those_of_the_sorted_margins(case):
    model, logits_NLE, ids_NLK = case
    if (per_token := model["num_experts_per_tok"]) == model["num_experts"]:
        return
    ordered = -np.sort(-logits_NLE.astype(np.float64), axis=-1)
    margins_LN = np.sort((ordered[..., per_token - 1] - ordered[..., per_token]).T, axis=1)
    result = summed(model, (logits_NLE, ids_NLK)).result()
    for quantiles, margins_N in zip(result.margin_logits_quantiles, margins_LN, strict=True):
        exact = [margins_N[math.ceil(q * len(margins_N) - 1e-9) - 1] for q in MARGIN_QUANTILES]
        assert quantiles == pytest.approx(exact, rel=0.004, abs=1e-38)


@given(routers(), st.data())
def test_batching_order_and_merging_move_no_more_than_last_digits(count_in_parts, case, data):
    model, *arrays = case
    ours, theirs = count_in_parts(lambda: summed(model), data, *arrays).result(), summed(model, arrays).result()
    assert ours.margin_logits_quantiles == theirs.margin_logits_quantiles
    assert_alike(ours, theirs, rel=1e-12, abs=1e-14)


def test_blocks_within_a_chunk_equal_one_token_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    logits_NLE, ids_NLK = rng.standard_normal((50, 2, 8)), rng.integers(0, 8, (50, 2, 2))
    model = {"num_layers": 2, "num_experts": 8, "num_experts_per_tok": 2, "score_function": "softmax"}
    whole = summed(model, (logits_NLE, ids_NLK)).result()
    monkeypatch.setattr("pathmoe_eval.experts.router_scores._TOKENS_AT_ONCE", 7)
    assert_alike(summed(model, (logits_NLE, ids_NLK)).result(), whole, rel=1e-12, abs=0)


@given(routers(), st.integers(0, 2**32 - 1))
def test_relabelling_experts_changes_nothing(case, seed):
    model, logits_NLE, ids_NLK = case
    names_E = np.random.default_rng(seed).permutation(model["num_experts"])
    renamed_NLE = np.empty_like(logits_NLE)
    renamed_NLE[..., names_E] = logits_NLE
    ours, theirs = (
        summed(model, arrays).result() for arrays in ((logits_NLE, ids_NLK), (renamed_NLE, names_E[ids_NLK]))
    )
    assert_alike(ours, theirs, rel=1e-9, abs=1e-12)


@given(routers(), st.floats(-20, 20))
def test_softmax_ignores_a_shift_of_all_logits(case, shift):
    model, logits_NLE, ids_NLK = case
    model |= {"score_function": "softmax"}
    ours, theirs = (
        summed(model, (logits, ids_NLK)).result()
        for logits in (logits_NLE.astype(np.float64), logits_NLE.astype(np.float64) + shift)
    )
    assert_alike(ours, theirs, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
def test_equal_logits_score_as_uniform_and_leave_no_margin(score_function):
    model = {"num_layers": 1, "num_experts": 8, "num_experts_per_tok": 2, "score_function": score_function}
    result = summed(model, (np.full((5, 1, 8), 3, dtype=np.float32), np.array([[[0, 1]]] * 5))).result()
    assert result.entropy_bits == pytest.approx([3.0])
    assert result.confidence == pytest.approx([1 / 8])
    assert result.chosen_mass == pytest.approx([2 / 8])
    assert result.margin_logits == result.margin_scores == (0.0,)
    assert result.margin_logits_quantiles == ((0.0,) * 5,)


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
def test_extreme_logits_neither_overflow_nor_leave_the_range(score_function):
    model = {"num_layers": 1, "num_experts": 3, "num_experts_per_tok": 1, "score_function": score_function}
    logits_NLE = np.array([[[3e38, -3e38, -3e38]], [[-800, -900, -900]]], dtype=np.float32)
    result = summed(model, (logits_NLE, np.zeros((2, 1, 1), dtype=int))).result()
    assert result.entropy_bits == pytest.approx([0.0], abs=1e-30)
    assert result.confidence == result.chosen_mass == pytest.approx([1.0])
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["score_function"] == score_function


LOGITS, IDS = np.zeros((3, 2, 4), dtype=np.float32), np.array([[[0, 1], [2, 3]]] * 3)
NAN = np.where(np.arange(24).reshape(3, 2, 4) == 13, np.nan, 0)


def sums_with(**changes):
    model = {"num_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "score_function": "softmax"}
    return RouterScoreSums(**model | changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sums_with(score_function="relu"), r"score_function \(relu\) must be softmax or sigmoid"),
        (lambda: sums_with().update(LOGITS[:2], IDS), r"logits \(float32 \[2, 2, 4\]\) must be float \[3, 2, 4\]"),
        (lambda: sums_with().update(LOGITS.astype(int), IDS), r"logits \(int64 \[3, 2, 4\]\) must be float"),
        (lambda: sums_with().update(NAN, IDS), r"logits \(not finite at token 1, layer 1\) must be finite"),
        (lambda: sums_with().update(LOGITS - np.inf, IDS), r"logits \(not finite at token 0, layer 0\)"),
        (lambda: sums_with().update(LOGITS, IDS + 1), r"expert_ids \(4\) must be at least 0"),
        (
            lambda: sums_with().merge(sums_with(score_function="sigmoid")),
            r"other.score_function \(sigmoid\) must equal",
        ),
        (lambda: sums_with().merge(sums_with(num_layers=3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
        (lambda: sums_with().result(), r"^num_tokens \(0\) must be at least 1; "),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_the_callers_logits_stay_as_they_are(num_tokens):
    logits_NLE = np.random.default_rng(1).standard_normal((num_tokens, 1, 4))
    kept_NLE = logits_NLE.copy()
    model = {"num_layers": 1, "num_experts": 4, "num_experts_per_tok": 2, "score_function": "softmax"}
    summed(model, (logits_NLE, np.zeros((num_tokens, 1, 2), dtype=int)))
    np.testing.assert_array_equal(logits_NLE, kept_NLE)
