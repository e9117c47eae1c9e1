"""Log-likelihoods and completions for lm-evaluation-harness, against whole forwards and transformers' generation."""

# Shapes: V vocabulary, S inputs.

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from transformers import PreTrainedTokenizerFast

from pathmoe.data import encode, train_bpe
from pathmoe_eval.downstream.harness_model import HarnessModel
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel

TEXT = "".join(f"def f{n}(a, b):\n    return g() + a[{n}] * b\n" for n in range(12))
CONTEXTS = ("def f3(a, b):\n    return ", "def", "", "x = g(", "  \n", "é")
CONTINUATIONS = (" a", "a[3] * b\n", ")", "return", "\n\n", "é<|endoftext|>")


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe([TEXT], 290)


@pytest.fixture(scope="module")
def opened(build_moe: Callable[..., Any], bpe: PreTrainedTokenizerFast) -> EvaluatedModel:
    return evaluated(build_moe("path_b4", vocab_size=300), bpe)


def evaluated(model: Any, tokenizer: Any, ends_documents: bool = True) -> EvaluatedModel:
    return EvaluatedModel(model=model, tokenizer=tokenizer, name="m", ends_documents=ends_documents, run_data=None)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=of_one, idx=0) for of_one in arguments]


def score(harness_model: HarnessModel, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return harness_model.loglikelihood(requests("loglikelihood", *pairs))


@torch.no_grad()
def directly(model: Any, context_ids: list[int], continuation_ids: list[int]) -> tuple[float, bool]:
    """From one forward over all tokens, in float64 from the logits on."""
    ids = torch.tensor([*context_ids, *continuation_ids])
    log_probabilities_SV = model(input_ids=ids[None]).logits[0].double().log_softmax(dim=-1)
    begin = len(context_ids) - 1
    rows_SV = log_probabilities_SV[begin : begin + len(continuation_ids)]
    likeliest = rows_SV.argmax(dim=-1).tolist()
    return float(rows_SV[range(len(continuation_ids)), continuation_ids].sum()), likeliest == continuation_ids


def as_tokens(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context without its last spaces, and those of the whole that come after as many."""
    stripped = context.rstrip()
    if not stripped:
        return [tokenizer.bos_token_id], encode(tokenizer, [context + continuation])[0]
    before = [tokenizer.bos_token_id, *encode(tokenizer, [stripped])[0]]
    after = [tokenizer.bos_token_id, *encode(tokenizer, [context + continuation])[0]][len(before) :]
    return before, after or encode(tokenizer, [continuation])[0]


def greedy(opened: EvaluatedModel, prompt: torch.Tensor, number: int) -> list[int]:
    """Tokens after a prompt, in which bos is no padding, though they have one id."""
    mask = torch.ones_like(prompt)
    generated = opened.model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=number)
    return generated[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_log_likelihood_is_that_of_a_whole_forward(opened: EvaluatedModel, batch_size: int) -> None:
    pairs = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]
    found = score(HarnessModel(opened, 64, batch_size), *pairs)
    for pair, (log_likelihood, is_greedy) in zip(pairs, found, strict=True):
        expected, greedy = directly(opened.model, *as_tokens(opened.tokenizer, *pair))
        assert log_likelihood == pytest.approx(expected, rel=1e-5)
        assert is_greedy == greedy


def test_each_text_is_scored_alone_by_default(opened: EvaluatedModel) -> None:
    pairs = [(context, continuation) for context in CONTEXTS for continuation in CONTINUATIONS]
    together = score(HarnessModel(opened, 64), *pairs)
    assert together == [score(HarnessModel(opened, 64), pair)[0] for pair in pairs]


def test_what_greedy_decoding_gives_is_greedy_and_nothing_else(opened: EvaluatedModel) -> None:
    prompt = torch.tensor([[opened.tokenizer.bos_token_id, *encode(opened.tokenizer, ["def f"])[0]]])
    generated = greedy(opened, prompt, 6)
    other = [*generated[:-1], (generated[-1] + 1) % 300]
    found = HarnessModel(opened, 64)._loglikelihood_tokens(
        [("", prompt[0].tolist(), ids) for ids in (generated, other)]
    )
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_equal_logits_tie(build_moe: Callable[..., Any], bpe: PreTrainedTokenizerFast) -> None:
    model = build_moe("indep", vocab_size=300)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    harness_model = HarnessModel(evaluated(model, bpe), 64)
    found = harness_model._loglikelihood_tokens([("", [1, 2], [token, 7]) for token in (3, 4)])
    assert found[0][0] == found[1][0] == pytest.approx(-2 * math.log(300), rel=1e-6)


@given(num_context=st.integers(1, 20), num_continuation=st.integers(1, 8), max_length=st.integers(8, 16))
def test_a_long_text_loses_its_beginning(
    num_context: int, num_continuation: int, max_length: int, opened: EvaluatedModel
) -> None:
    context, continuation = (torch.randint(3, 290, (number,)).tolist() for number in (num_context, num_continuation))
    harness_model = HarnessModel(opened, max_length)
    (found,) = harness_model._loglikelihood_tokens([("", context, continuation)])
    num_kept = max(1, max_length + 1 - num_continuation)
    assert found[0] == pytest.approx(directly(opened.model, context[-num_kept:], continuation)[0], rel=1e-5)
    assert harness_model.num_truncated == (num_context + num_continuation > max_length + 1)
    assert harness_model.num_requests == 1


def test_a_continuation_of_no_tokens_is_certain(opened: EvaluatedModel) -> None:
    assert score(HarnessModel(opened, 64), ("def", ""), ("def", "\n"))[0] == (0.0, True)


def test_a_continuation_that_its_context_would_swallow_is_scored(opened: EvaluatedModel) -> None:
    tokenizer = opened.tokenizer
    whole, context = encode(tokenizer, ["g()", "g("])
    assert len(whole) == len(context)  # () is one token
    (found,) = score(HarnessModel(opened, 64), ("g(", ")"))
    parts = [tokenizer.bos_token_id, *context], encode(tokenizer, [")"])[0]
    assert found[0] == pytest.approx(directly(opened.model, *parts)[0], rel=1e-5)


def test_a_model_of_others_gets_what_its_tokenizer_puts_before_a_text(
    build_moe: Callable[..., Any], bpe: PreTrainedTokenizerFast
) -> None:
    model = build_moe("olmoe", vocab_size=300)
    (found,) = score(HarnessModel(evaluated(model, bpe, ends_documents=False), 64), ("def f", "3"))
    before, after = as_tokens(bpe, "def f", "3")
    assert found[0] == pytest.approx(directly(model, before[1:], after)[0], rel=1e-5)  # this one puts nothing there


@pytest.mark.parametrize("max_length", [1, 5, 8, 64])
def test_a_whole_text_is_scored_in_windows(opened: EvaluatedModel, max_length: int) -> None:
    text = TEXT[:60]
    harness_model = HarnessModel(opened, max_length)
    empty, whole = harness_model.loglikelihood_rolling(requests("loglikelihood_rolling", ("",), (text,)))
    ids = [opened.tokenizer.bos_token_id, *encode(opened.tokenizer, [text])[0]]
    # A window predicts max_length tokens, the last one what is left; it has as many inputs, or all that there are.
    num_predicted, expected = len(ids) - 1, 0.0
    for begin in range(0, num_predicted, max_length):
        end = min(begin + max_length, num_predicted)
        context, continuation = ids[max(0, end - max_length) : begin + 1], ids[begin + 1 : end + 1]
        expected += directly(opened.model, context, continuation)[0]
    assert empty == 0.0
    assert whole == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("max_length", [10, 64])
def test_a_completion_is_that_of_greedy_decoding_up_to_its_end(opened: EvaluatedModel, max_length: int) -> None:
    tokenizer, context = opened.tokenizer, "def f3(a, b):\n    return"
    ids = [tokenizer.bos_token_id, *encode(tokenizer, [context])[0]][-(max_length - 8) :]
    text = tokenizer.decode(greedy(opened, torch.tensor([ids]), 8), skip_special_tokens=True)
    assert len(text) > 4
    options = [{"until": [], "max_gen_toks": 8}, {"until": [text[3]], "max_gen_toks": 8, "do_sample": False}]
    harness_model = HarnessModel(opened, max_length)
    found = harness_model.generate_until(requests("generate_until", *((context, of_one) for of_one in options)))
    assert found == [text, text.split(text[3])[0]]
    assert harness_model.num_truncated == (2 if max_length == 10 else 0)


BAD_INPUT: dict[str, Callable[[EvaluatedModel], Any]] = {
    r"--max_length \(0\) must be at least 1": lambda opened: HarnessModel(opened, 0),
    r"--batch_size \(-1\) must be at least 1": lambda opened: HarnessModel(opened, 8, -1),
    r"--max_length \(2\) must be at least the \d+ tokens of ' g\(\) \+ a'": lambda opened: score(
        HarnessModel(opened, 2), ("return ", "g() + a")
    ),
    r"--max_length \(8\) must be above the 8 tokens that a task may generate": lambda opened: HarnessModel(
        opened, 8
    ).generate_until(requests("generate_until", ("a", {"max_gen_toks": 8, "until": []}))),
    r"--model \(m\) has a tokenizer that gives the token id 300, which must be below": lambda opened: HarnessModel(
        opened, 8
    )._loglikelihood_tokens([("", [1], [300])]),
}


@pytest.mark.parametrize("message", BAD_INPUT)
def test_bad_input(message: str, opened: EvaluatedModel) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        BAD_INPUT[message](opened)


def test_a_tokenizer_without_a_token_to_begin_with(opened: EvaluatedModel) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=opened.tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match=r"^--model \(m\) must have a tokenizer with a bos or an eos token"):
        HarnessModel(evaluated(opened.model, bare), 8)
