"""Rows taken out of caches and put together, against transformers' own reordering and against sequences alone."""

# Shapes: R rows, S tokens, V vocabulary.

import copy

import pytest
import torch

from pathmoe_eval.generation.row_caches import join_rows, select_rows

SHORT, LONG = 3, 9
"""Tokens before and behind the sliding window of 4 that some families have."""


def prefill(model, ids_RS):
    return model(input_ids=ids_RS, use_cache=True).past_key_values


def step(model, cache, tokens):
    return model(input_ids=torch.tensor(tokens)[:, None], past_key_values=cache).logits[:, -1]


def build(build_moe, family):
    return build_moe(family, sliding_window=4) if family == "mixtral" else build_moe(family)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_rows_are_those_that_reordering_gives(build_moe, family, length):
    model = build(build_moe, family)
    cache = prefill(model, torch.randint(2, 40, (3, length)))
    theirs = copy.deepcopy(cache)
    ours = select_rows(cache, [2, 0, 2])
    theirs.reorder_cache(torch.tensor([2, 0, 2]))
    for tokens in ([4, 5, 6], [7, 8, 9], [3, 3, 3]):
        assert torch.equal(step(model, ours, tokens), step(model, theirs, tokens))


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_a_row_goes_on_in_others_company_as_alone_and_caches_stay_as_they_were(build_moe, family, length):
    model = build(build_moe, family)
    prompts = torch.randint(2, 40, (3, length))
    caches = [prefill(model, prompts[[row]]) for row in range(3)]
    alone = [copy.deepcopy(cache) for cache in caches]
    joined = join_rows([caches[1], select_rows(join_rows(caches), [2, 0])])
    for tokens in ([4, 5, 6], [7, 8, 9]):
        found_RV = step(model, joined, tokens)
        for row, sequence in enumerate((1, 2, 0)):
            torch.testing.assert_close(found_RV[[row]], step(model, alone[sequence], [tokens[row]]), rtol=0, atol=1e-5)
    again = [prefill(model, prompts[[row]]) for row in range(3)]
    for kept, new in zip(caches, again, strict=True):
        assert torch.equal(step(model, kept, [4]), step(model, new, [4]))


def test_ours(build_moe, router):
    model = build_moe(router)
    prompts = torch.randint(2, 40, (2, 5))
    joined = join_rows([prefill(model, prompts[[0]]), prefill(model, prompts[[1]])])
    whole = prefill(model, prompts)
    torch.testing.assert_close(step(model, joined, [4, 5]), step(model, whole, [4, 5]), rtol=0, atol=1e-5)


def test_rows_on_another_axis_are_found_there(build_moe):
    cache = prefill(build_moe("olmoe"), torch.randint(2, 40, (2, 5)))
    positions = torch.arange(30).reshape(3, 2, 5)
    cache.layers[0].indexer_position_ids = positions
    assert torch.equal(select_rows(cache, [1]).layers[0].indexer_position_ids, positions[:, 1:])
    assert torch.equal(join_rows([cache, cache]).layers[0].indexer_position_ids, torch.cat([positions] * 2, dim=1))
