"""Bit masks of expert sets against Python sets, and what is refused."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token, W words of a set.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layers import expert_sets
from pathmoe_eval.layers.expert_sets import pad_tokens, set_blocks, set_masks, set_sizes
from pathmoe_eval.routing_shape import RoutingShape


def routing(seed, num_tokens, num_layers, num_experts, num_picks, dtype=np.int64):
    order_NLE = np.argsort(np.random.default_rng(seed).random((num_tokens, num_layers, num_experts)), axis=2)
    return order_NLE[:, :, :num_picks].astype(dtype)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 15, 16, 17, 32, 33, 64, 65, 128, 129, 512]), st.integers(1, 10)
)
def test_masks_hold_the_sets(seed, num_experts, num_picks):
    ids_NLK = routing(seed, 4, 3, num_experts, min(num_picks, num_experts))
    masks_WLN = set_masks(ids_NLK.transpose(2, 1, 0), num_experts)
    word_bits = 8 * masks_WLN.itemsize
    assert word_bits * len(masks_WLN) >= num_experts
    for token, layers in enumerate(ids_NLK.tolist()):
        for layer, ids in enumerate(layers):
            mask = sum(int(word) << word_bits * index for index, word in enumerate(masks_WLN[:, layer, token]))
            assert {e for e in range(num_experts + 64) if mask >> e & 1} == set(ids)


@pytest.mark.parametrize("num_experts", [16, 70])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.uint64])
def test_any_integer_dtype_gives_the_same_masks(dtype, num_experts):
    ids_KLN = routing(0, 50, 3, num_experts, 4).transpose(2, 1, 0)
    assert np.array_equal(set_masks(ids_KLN.astype(dtype), num_experts), set_masks(ids_KLN, num_experts))


@given(st.integers(0, 20), st.integers(1, 7))
def test_blocks_are_the_chunk_in_order(num_tokens, size):
    ids_NLK = routing(num_tokens, num_tokens, 2, 5, 3)
    shape = RoutingShape(num_layers=2, num_experts=5, num_experts_per_tok=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_sets, "_BLOCK_TOKENS", size)
        blocks = list(set_blocks(shape, ids_NLK))
    assert [ids_KLN.shape[2] for ids_KLN, _ in blocks] == [
        min(size, num_tokens - n) for n in range(0, num_tokens, size)
    ]
    for index, (ids_KLN, masks_WLN) in enumerate(blocks):
        assert np.array_equal(ids_KLN, ids_NLK[index * size : (index + 1) * size].transpose(2, 1, 0))
        assert np.array_equal(masks_WLN, set_masks(ids_KLN, 5))


@pytest.mark.parametrize("num_experts", [16, 130])
def test_sizes_and_padding(num_experts):
    masks_WLN = set_masks(routing(1, 5, 2, num_experts, 7).transpose(2, 1, 0), num_experts)
    assert set_sizes(masks_WLN).tolist() == [[7] * 5] * 2
    assert set_sizes(pad_tokens(masks_WLN, 4)).tolist() == [[7] * 5 + [0] * 3] * 2
    assert pad_tokens(masks_WLN, 5).shape == masks_WLN.shape


GOOD_NLK = np.zeros((5, 2, 3), dtype=np.int64) + np.arange(3)


def test_a_chunk_without_tokens_has_no_blocks():
    assert list(set_blocks(RoutingShape(num_layers=2, num_experts=4, num_experts_per_tok=3), GOOD_NLK[:0])) == []


@pytest.mark.parametrize(
    ("ids_NLK", "num_experts", "message"),
    [
        (GOOD_NLK + 2, 4, r"expert_ids \(4\) must be at least 0 and below num_experts \(4\)"),
        (GOOD_NLK // 2, 4, r"expert_ids \(\[0, 0, 1\] in layer 0\) must differ within a token"),
        (np.arange(256)[None, None], 999, r"num_experts_per_tok \(256\) must be at most 255; "),
    ],
)
def test_bad_input_is_named_in_one_line(ids_NLK, num_experts, message):
    shape = RoutingShape(num_layers=ids_NLK.shape[1], num_experts=num_experts, num_experts_per_tok=ids_NLK.shape[2])
    with pytest.raises(ValueError, match=message) as error:
        list(set_blocks(shape, ids_NLK))
    assert "\n" not in str(error.value)
