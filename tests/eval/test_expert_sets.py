"""Bit masks of expert sets against Python sets, and what is refused."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token, W words of a set.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval import expert_sets
from pathmoe_eval.expert_sets import RoutingShape, check_some_tokens, pad_tokens, set_blocks, set_masks, set_sizes


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


def shape(num_layers=2, num_experts=4, num_experts_per_tok=3):
    return RoutingShape(num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok)


GOOD = np.zeros((5, 2, 3), dtype=np.int64) + np.arange(3)


def test_what_fits_is_taken():
    assert shape().check(GOOD.tolist()).tolist() == GOOD.tolist()
    assert list(set_blocks(shape(), GOOD[:0])) == []
    shape().check_mergeable(shape())
    check_some_tokens(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shape(num_layers=0), r"num_layers \(0\) must be at least 1"),
        (lambda: shape(num_experts=2), r"num_experts_per_tok \(3\) must be between 1 and num_experts \(2\)"),
        (lambda: shape(num_experts_per_tok=0), r"num_experts_per_tok \(0\) must be between 1"),
        (lambda: shape(num_experts=999, num_experts_per_tok=256), r"num_experts_per_tok \(256\) .* at most 255"),
        (lambda: shape().check(GOOD[0]), r"expert_ids \(int64 \[2, 3\]\) must be integers \[tokens, 2, 3\]"),
        (lambda: shape().check(GOOD[:, :1]), r"expert_ids \(int64 \[5, 1, 3\]\) must be integers \[tokens, 2, 3\]"),
        (lambda: shape().check(GOOD + 0.5), r"expert_ids \(float64 \[5, 2, 3\]\) must be integers"),
        (lambda: shape().check(GOOD - 1), r"expert_ids \(-1\) must be at least 0 and below num_experts \(4\)"),
        (lambda: shape().check(GOOD + 2), r"expert_ids \(4\) must be at least 0 and below num_experts \(4\)"),
        (
            lambda: list(set_blocks(shape(), GOOD // 2)),
            r"expert_ids \(\[0, 0, 1\] in layer 0\) must differ within a token",
        ),
        (lambda: shape().check_mergeable(shape(3)), r"other.num_layers \(3\) must equal num_layers \(2\)"),
        (lambda: shape().check_mergeable(shape(2, 5)), r"other.num_experts \(5\) must equal num_experts \(4\)"),
        (lambda: shape().check_mergeable(shape(2, 4, 1)), r"other.num_experts_per_tok \(1\) must equal .* \(3\)"),
        (lambda: check_some_tokens(0), r"expert_ids \(0 tokens\) must hold at least 1 token"),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
