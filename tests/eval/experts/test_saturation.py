"""Saturation against sets intersected one token at a time, closed forms, and refusal of traces that do not match."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.experts.saturation import SaturationCounts, trace_saturation
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace import open_trace
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter


@st.composite
def pairs_of_routings(draw):
    """A model's numbers, and experts of two checkpoints that agree more or less."""
    num_experts = draw(st.sampled_from([1, 2, 6, 16]))
    per_token = draw(st.integers(1, min(num_experts, 4)))
    num_tokens, num_layers = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.random((num_tokens, num_layers, num_experts)) + 0.1 * np.arange(num_experts)
    moved = scores + draw(st.sampled_from([0.0, 0.3, 5.0])) * rng.random(scores.shape)
    shape = {"num_layers": num_layers, "num_experts": num_experts, "num_experts_per_tok": per_token}
    return shape, *(np.argsort(-values, axis=-1)[..., :per_token].astype(np.uint8) for values in (scores, moved))


def counted(shape, *chunks):
    counts = SaturationCounts(**shape)
    for earlier_NLK, later_NLK in chunks:
        tokens_N = np.arange(len(earlier_NLK))
        counts.update(earlier_NLK, later_NLK, tokens_N, tokens_N.copy())
    return counts


@given(pairs_of_routings())
def test_equals_brute_force(case):
    shape, earlier_NLK, later_NLK = case
    result = counted(shape, (earlier_NLK, later_NLK)).result()
    n, k, num_experts = len(earlier_NLK), shape["num_experts_per_tok"], shape["num_experts"]
    assert result.num_tokens == n
    assert (result.all_picks_null_uniform, result.first_picks_null_uniform) == (k / num_experts, 1 / num_experts)
    for layer in range(shape["num_layers"]):
        before, after = earlier_NLK[:, layer].tolist(), later_NLK[:, layer].tolist()
        shared = sum(len(set(a) & set(b)) for a, b in zip(before, after, strict=True))
        assert result.all_picks[layer] == shared / (n * k)
        assert result.first_picks[layer] == sum(a[0] == b[0] for a, b in zip(before, after, strict=True)) / n
        # chance: the mean over all pairs of tokens, those of other tokens included
        assert result.all_picks_null_loads[layer] == pytest.approx(
            sum(len(set(a) & set(b)) for a in before for b in after) / (n * n * k)
        )
        assert result.first_picks_null_loads[layer] == pytest.approx(
            sum(a[0] == b[0] for a in before for b in after) / n**2
        )
    assert result.mean_all_picks == pytest.approx(np.mean(result.all_picks))
    assert result.mean_first_picks == pytest.approx(np.mean(result.first_picks))


@given(pairs_of_routings(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    shape, *routings = case
    tokens_N = np.arange(len(routings[0]))
    parts = count_in_parts(lambda: counted(shape), data, *routings, tokens_N, tokens_N)
    assert parts.result() == counted(shape, routings).result()


@given(pairs_of_routings(), st.integers(0, 2**32 - 1))
def test_relabelling_both_alike_changes_nothing(case, seed):
    shape, *both = case
    rng = np.random.default_rng(seed)
    names_LE = np.stack([rng.permutation(shape["num_experts"]) for _ in range(shape["num_layers"])])
    relabelled = [np.stack([names_E[ids[:, i]] for i, names_E in enumerate(names_LE)], axis=1) for ids in both]
    ours, theirs = asdict(counted(shape, both).result()), asdict(counted(shape, relabelled).result())
    for name in ("all_picks_null_loads", "first_picks_null_loads"):
        assert theirs.pop(name) == pytest.approx(ours.pop(name))
    assert ours == theirs


@given(pairs_of_routings())
def test_saturation_is_symmetric_and_full_with_itself(case):
    shape, earlier_NLK, later_NLK = case
    forward, back = counted(shape, (earlier_NLK, later_NLK)).result(), counted(shape, (later_NLK, earlier_NLK)).result()
    assert (forward.all_picks, forward.first_picks) == (back.all_picks, back.first_picks)
    itself = counted(shape, (later_NLK, later_NLK[..., ::-1])).result()
    assert itself.all_picks == (1.0,) * shape["num_layers"]


def test_independent_checkpoints_saturate_as_chance():
    rng = np.random.default_rng(0)
    earlier_NLK, later_NLK = (np.argsort(rng.random((20_000, 3, 16)), axis=-1)[..., :4] for _ in range(2))
    shape = {"num_layers": 3, "num_experts": 16, "num_experts_per_tok": 4}
    result = counted(shape, (earlier_NLK, later_NLK)).result()
    assert result.all_picks == pytest.approx([4 / 16] * 3, abs=0.01)
    assert result.first_picks == pytest.approx([1 / 16] * 3, abs=0.01)
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["all_picks_null_uniform"] == 0.25


IDS = np.array([[[0, 1]], [[2, 3]], [[1, 0]]])
TOKENS = np.array([7, 8, 9])


def update(earlier=IDS, later=IDS, earlier_tokens=TOKENS, later_tokens=TOKENS):
    counts = SaturationCounts(num_layers=1, num_experts=4, num_experts_per_tok=2)
    counts.update(earlier, later, earlier_tokens, later_tokens)
    return counts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: update(later=IDS[:2]), r"later expert_ids \(2 tokens\) must be as many as the earlier \(3\)"),
        (lambda: update(later=IDS[..., :1]), r"expert_ids \(int64 \[3, 1, 1\]\) must be integers \[tokens, 1, 2\]"),
        (
            lambda: update(later_tokens=TOKENS + 1),
            r"later token_ids \(8 at 0\) must equal the earlier \(7\); record both",
        ),
        (lambda: update(later_tokens=TOKENS[::-1]), r"later token_ids \(9 at 0\) must equal the earlier \(7\)"),
        (lambda: update(later_tokens=TOKENS[:2]), r"later token_ids \(\[2\]\) must be \[3\]"),
        (lambda: update(earlier_tokens=TOKENS[:2]), r"earlier token_ids \(\[2\]\) must be \[3\]"),
        (
            lambda: SaturationCounts(num_layers=1, num_experts=4, num_experts_per_tok=2).result(),
            r"^num_tokens \(0\) must be at least 1; ",
        ),
        (
            lambda: update().merge(SaturationCounts(num_layers=2, num_experts=4, num_experts_per_tok=2)),
            r"other.num_layers \(2\) must equal num_layers \(1\)",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def write_trace(folder, expert_ids_NLK, token_ids_N, logits):
    num_tokens, num_layers, per_token = expert_ids_NLK.shape
    header = TraceHeader(
        num_layers=num_layers, num_experts=64, num_experts_per_tok=per_token, layer_names=("l",) * num_layers,
        router_of_layer=tuple(range(num_layers)), model="m", tokenizer="", data="d", vocab_size=100, has_weights=False,
        has_logits=logits, has_predicted_ids=False,
    )  # fmt: skip
    with TraceWriter(folder, header) as writer:
        chunk = RoutingChunk(
            expert_ids_NLK=expert_ids_NLK, token_ids_N=token_ids_N, starts_S1=np.array([0, num_tokens]),
            logits_NLE=np.zeros((num_tokens, num_layers, 64), dtype=np.float32) if logits else None,
        )  # fmt: skip
        writer.append(chunk, names=["a"], domains=[""])
    return open_trace(folder)


def test_traces_with_and_without_logits_whose_chunks_end_elsewhere(tmp_path):
    rng = np.random.default_rng(0)
    earlier, later = (np.argsort(rng.random((70_000, 4, 64)), axis=-1)[..., :2].astype(np.uint8) for _ in range(2))
    token_ids_N = rng.integers(0, 100, 70_000)
    one = write_trace(tmp_path / "one", earlier, token_ids_N, logits=True)
    two = write_trace(tmp_path / "two", later, token_ids_N, logits=False)
    assert [chunk.num_tokens for chunk in one.chunks()] != [chunk.num_tokens for chunk in two.chunks()]
    counts = SaturationCounts(num_layers=4, num_experts=64, num_experts_per_tok=2)
    counts.update(earlier, later, token_ids_N, token_ids_N)
    assert trace_saturation(one, two) == counts.result()


def test_traces_of_other_tokens_are_refused(tmp_path):
    ids_NLK, token_ids_N = np.zeros((9, 1, 1), dtype=np.uint8), np.arange(9)
    nine = write_trace(tmp_path / "nine", ids_NLK, token_ids_N, logits=False)
    eight = write_trace(tmp_path / "eight", ids_NLK[1:], token_ids_N[1:], logits=False)
    with pytest.raises(ValueError, match=r"--later \(8 tokens\) must be a trace of the same 9 tokens; record both"):
        trace_saturation(nine, eight)
    other = write_trace(tmp_path / "other", ids_NLK, token_ids_N[::-1].copy(), logits=False)
    with pytest.raises(ValueError, match="token"):
        trace_saturation(nine, other)
