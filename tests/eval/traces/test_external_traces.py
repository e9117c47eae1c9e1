"""Routing as vLLM and SGLang return it, built as they build it, against the tokens and experts that went in."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts.

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.traces.external_traces import from_arrays, from_sglang, from_vllm

NUM_EXPERTS = 8


def chosen_experts(rng, num_tokens, num_layers, num_chosen, num_experts=NUM_EXPERTS):
    """Distinct experts for each token and layer, in an order of no meaning."""
    every_NLE = np.broadcast_to(np.arange(num_experts), (num_tokens, num_layers, num_experts))
    return rng.permuted(every_NLE, axis=-1)[..., :num_chosen]


def npy_base64(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@st.composite
def completions(draw):
    """A prompt, a generation, and the routing of every token that was an input, of a model with dense layers first."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    prompt = draw(st.lists(st.integers(0, 99), min_size=1, max_size=6))
    output = draw(st.lists(st.integers(0, 99), min_size=1, max_size=6))
    num_dense = draw(st.integers(0, 2))
    experts_NLK = chosen_experts(rng, len(prompt) + len(output) - 1, draw(st.integers(1, 3)), 2)
    with_dense_NLK = np.concatenate(
        [np.zeros((len(experts_NLK), num_dense, 2), dtype=np.int64), experts_NLK.astype(np.int64)], axis=1
    )
    moe_layers = range(num_dense, with_dense_NLK.shape[1])
    start = draw(st.integers(0, len(prompt) - 1)) if len(prompt) + len(output) > 2 else 0
    return prompt, output, experts_NLK[start:], with_dense_NLK[start:], list(moe_layers), start


def check(chunk, prompt, output, experts_NLK, start):
    assert chunk.expert_ids_NLK.tolist() == experts_NLK.tolist()
    assert chunk.token_ids_N.tolist() == [*prompt, *output][start:-1]
    assert chunk.starts_S1.tolist() == [0, len(experts_NLK)]
    assert chunk.weights_NLK is None


@given(completions(), st.sampled_from([np.uint8, np.uint16]))
def test_vllm_returns_one_array_for_prompt_and_output(completion, dtype):
    prompt, output, experts_NLK, rows_NLK, moe_layers, start = completion
    rows_NLK = rows_NLK.astype(dtype)
    for returned in (rows_NLK, npy_base64(rows_NLK)):
        chunk = from_vllm(returned, prompt, output, prompt_start=start, moe_layers=moe_layers)
        check(chunk, prompt, output, experts_NLK, start)
        assert chunk.expert_ids_NLK.dtype == dtype


@given(completions())
def test_vllm_0_21_returns_prompt_and_output_apart(completion):
    prompt, output, experts_NLK, _, _, start = completion
    parts = experts_NLK[: len(prompt) - start].astype(np.int16), experts_NLK[len(prompt) - start :].astype(np.int16)
    for prompt_rows, rows in (parts, [part.tolist() for part in parts]):
        chunk = from_vllm(rows, prompt, output, prompt_routed_experts=prompt_rows, prompt_start=start)
        check(chunk, prompt, output, experts_NLK, start)


@given(completions(), st.sampled_from(["int32", "uint16", "uint8"]))
def test_sglang_returns_bare_numbers(completion, dtype):
    prompt, output, experts_NLK, rows_NLK, moe_layers, start = completion
    text = base64.b64encode(rows_NLK.astype(dtype).tobytes()).decode("utf-8")
    chunk = from_sglang(
        text,
        [*prompt, *output],
        num_hidden_layers=rows_NLK.shape[1],
        num_experts_per_tok=2,
        start_len=start,
        dtype=dtype,
        moe_layers=moe_layers,
    )
    check(chunk, prompt, output, experts_NLK, start)


@given(st.integers(0, 1 << 32), st.integers(1, 5), st.integers(1, 3))
def test_weights_put_the_highest_first_and_keep_each_with_its_expert(seed, num_tokens, num_layers):
    rng = np.random.default_rng(seed)
    ids_NLK = chosen_experts(rng, num_tokens, num_layers, 3)
    weights_NLK = rng.integers(1, 4, ids_NLK.shape).astype(np.float32)  # with ties
    chunk = from_arrays(ids_NLK, np.zeros(num_tokens, dtype=np.int32), weights_NLK=weights_NLK)
    for token in range(num_tokens):
        for layer in range(num_layers):
            pairs = list(zip(weights_NLK[token, layer].tolist(), ids_NLK[token, layer].tolist(), strict=True))
            found = list(
                zip(chunk.weights_NLK[token, layer].tolist(), chunk.expert_ids_NLK[token, layer].tolist(), strict=True)
            )
            assert found == sorted(pairs, key=lambda pair: -pair[0])  # a stable sort


def test_several_sequences_and_logits_pass_through():
    ids_NLK = chosen_experts(np.random.default_rng(0), 5, 2, 2)
    logits_NLE = np.random.default_rng(1).standard_normal((5, 2, NUM_EXPERTS)).astype(np.float32)
    chunk = from_arrays(ids_NLK, np.arange(5), starts_S1=np.array([0, 2, 5]), logits_NLE=logits_NLE)
    assert chunk.sequence_of_token_N().tolist() == [0, 0, 1, 1, 1]
    assert chunk.logits_NLE is logits_NLE and chunk.expert_ids_NLK is ids_NLK


ROWS_NLK = chosen_experts(np.random.default_rng(0), 4, 2, 2)
PROMPT, OUTPUT = [1, 2, 3], [4, 5]


def with_value(value):
    changed_NLK = ROWS_NLK.astype(np.int16)
    changed_NLK[1, 0] = value
    return changed_NLK


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_vllm(None, PROMPT, OUTPUT), r"routed_experts \(object \[\]\) must be integers .* --enable"),
        (lambda: from_vllm(ROWS_NLK[:3], PROMPT, OUTPUT), r"routed_experts \(3 rows\) must .* 4 tokens"),
        (lambda: from_vllm(ROWS_NLK, PROMPT, OUTPUT, prompt_start=1), r"routed_experts \(4 rows\) must .* 3 tokens"),
        (lambda: from_vllm(ROWS_NLK, PROMPT, OUTPUT, prompt_start=-1), r"routed_experts \(4 rows\) must .* first -1"),
        (lambda: from_vllm(ROWS_NLK, PROMPT, OUTPUT, moe_layers=[1, 2]), r"moe_layers \(2\) must be among the 2"),
        (lambda: from_vllm(ROWS_NLK, PROMPT, OUTPUT, moe_layers=[]), r"moe_layers \(none\) must be among the 2"),
        (lambda: from_vllm(with_value(-1), PROMPT, OUTPUT), r"\(-1, token 1, layer 0\) must be at least 0; .* cache"),
        (lambda: from_vllm(with_value(0), PROMPT, OUTPUT), r"\(0, 0, token 1, layer 0\) must not .* twice; .* dense"),
        (lambda: from_vllm("###", PROMPT, OUTPUT), r"routed_experts \(text\) must be base64 of a .npy"),
        (lambda: from_vllm("AAAA", PROMPT, OUTPUT), r"routed_experts \(text\) must be base64 of a .npy"),
        (lambda: from_vllm(np.empty((0, 2, 2), int), [1], []), r"expert_ids_NLK \(\[0, 2, 2\]\) must not be empty"),
        (
            lambda: from_sglang("AAAA", [1, 2], num_hidden_layers=1, num_experts_per_tok=2),
            r"routed_experts \(3 bytes\) must hold num_hidden_layers \(1\) x num_experts_per_tok \(2\) x int32",
        ),
        (
            lambda: from_sglang("#", [1, 2], num_hidden_layers=1, num_experts_per_tok=2),
            r"routed_experts \(text\) must be base64; ",
        ),
        (
            lambda: from_sglang("", [1, 2], num_hidden_layers=1, num_experts_per_tok=2, dtype="int64"),
            r"dtype \(int64\) must be one of int32, uint16, uint8",
        ),
        (
            lambda: from_sglang("", [1, 2], num_hidden_layers=0, num_experts_per_tok=2),
            r"routed_experts \(0 bytes\) must hold num_hidden_layers \(0\)",
        ),
    ],
)
def test_what_an_engine_did_not_record_is_refused(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_npy_with_pickled_objects_is_refused():
    with pytest.raises(ValueError, match=r"must be base64 of a \.npy file"):
        from_vllm(npy_base64(np.array([[[{}]]], dtype=object)), PROMPT, OUTPUT)
