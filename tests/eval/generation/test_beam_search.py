"""Beam search against transformers' own, and against all sequences where these can be written out."""

import itertools

import numpy as np
import pytest
import torch

from pathmoe_eval.generation.beam_search import beam_search
from pathmoe_eval.generation.decoder import Decoder
from pathmoe_eval.generation.tree import CUT, END_OF_SEQUENCE, NOT_SEARCHED

PROMPT = [5, 9, 2]


def search(model, num_beams, max_new_tokens, eos_ids, prompt=PROMPT, vocab_size=40):
    with Decoder(model) as decoder:
        return beam_search(
            decoder,
            prompt,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            eos_ids=frozenset(eos_ids),
            vocab_size=vocab_size,
        )


def finished(tree):
    """Sequences that ended or were cut, with the log-probability of all tokens."""
    leaves = np.flatnonzero((tree.end_N == END_OF_SEQUENCE) | (tree.end_N == CUT))
    paths = [tree.path(leaf) for leaf in leaves]
    return {tuple(tree.token_ids_N[path].tolist()): float(tree.log_probability_N[path].sum()) for path in paths}


@pytest.mark.parametrize("name", ["path_b4", "recurrent", "olmoe", "gpt_oss", "qwen3_next"])
@pytest.mark.parametrize(
    ("num_beams", "eos_ids", "length"), [(1, [0, 7], 10), (2, [7], 8), (4, [0, 7, 13], 12), (5, [38], 6)]
)
def test_the_best_sequence_is_that_of_transformers(build_moe, name, num_beams, eos_ids, length):
    model = build_moe(name)
    theirs = model.generate(
        torch.tensor([PROMPT]), attention_mask=torch.ones(1, 3, dtype=torch.long), num_beams=num_beams,
        do_sample=False, length_penalty=0.0, early_stopping=False, max_new_tokens=length, eos_token_id=eos_ids,
        pad_token_id=39,
    )  # fmt: skip
    found = finished(search(model, num_beams, length, eos_ids).tree)
    assert max(found, key=found.__getitem__) == tuple(theirs[0].tolist())


def test_as_many_beams_as_there_are_sequences_find_them_all(build_moe):
    model, length, eos = build_moe("path_b4", vocab_size=4), 3, 2
    searched = search(model, 4**length, length, [eos], prompt=[1, 3], vocab_size=4)
    expected = {}
    for tokens in itertools.product(range(4), repeat=length):
        cut = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
        with torch.inference_mode():
            log = model(input_ids=torch.tensor([[1, 3, *cut]])).logits[0].double().log_softmax(-1)
        expected[(1, 3, *cut)] = float(sum(log[1 + place, token] for place, token in enumerate(cut)))
    found = finished(searched.tree)
    assert found == pytest.approx(expected, abs=1e-5)
    assert sum(np.exp(list(found.values()))) == pytest.approx(1, abs=1e-5)
    assert not (searched.tree.end_N == NOT_SEARCHED).any()
    # The prompt, then what goes on of 1, 2 and 3 tokens.
    assert searched.num_forwarded == 2 + 3 + 9 + 27


def test_beams_that_no_completion_can_be_beaten_by_are_left(build_moe):
    tree = search(build_moe("path_b4"), 2, 40, range(0, 40, 2)).tree
    scores = sorted(finished(tree).values(), reverse=True)
    left = [tree.path(leaf) for leaf in np.flatnonzero(tree.end_N == NOT_SEARCHED)]
    assert len(scores) >= 2
    assert (tree.end_N != CUT).all()
    assert max(float(tree.log_probability_N[path].sum()) for path in left) <= scores[1]


@pytest.mark.parametrize("name", ["num_beams", "max_new_tokens"])
def test_refused_numbers(build_moe, name):
    numbers = {"num_beams": 2, "max_new_tokens": 3} | {name: 0}
    with pytest.raises(ValueError, match=rf"^--{name} \(0\) must be at least 1; raise it$"):
        search(build_moe("path_b4"), eos_ids=[0], **numbers)


def test_an_empty_prompt_is_refused(build_moe):
    with pytest.raises(ValueError, match=r"^--prompt \(no tokens\) must"):
        search(build_moe("path_b4"), 2, 3, [0], prompt=[])
