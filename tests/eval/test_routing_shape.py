"""The check that every chunk of expert ids passes, and its one-line refusals."""

# Shapes: N tokens, L MoE layers, K experts per token.

import numpy as np
import pytest

from pathmoe_eval.routing_shape import RoutingShape, by_layer, check_some_tokens, tokens_last

GOOD = np.array([[[0, 1], [2, 3], [1, 0]]] * 5)


def shape(**changes):
    return RoutingShape(**{"num_layers": 3, "num_experts": 4, "num_experts_per_tok": 2} | changes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_any_integer_dtype_passes_unchanged(dtype):
    checked_NLK = shape().check(GOOD.astype(dtype))
    assert checked_NLK.dtype == dtype
    np.testing.assert_array_equal(checked_NLK, GOOD)


def test_a_chunk_without_tokens_passes():
    assert shape().check(GOOD[:0]).shape == (0, 3, 2)


def test_equal_shapes_merge_and_some_tokens_are_enough():
    shape().check_mergeable(shape())
    check_some_tokens(1)


@pytest.mark.parametrize("num_tokens", [0, 1, 511, 512, 513, 1500])
def test_tokens_last_is_a_contiguous_copy(num_tokens):
    ids_NLK = np.random.default_rng(0).integers(0, 99, (num_tokens, 3, 2))
    copied_KLN = tokens_last(ids_NLK.transpose(2, 1, 0))
    assert copied_KLN.flags.c_contiguous
    np.testing.assert_array_equal(copied_KLN, ids_NLK.transpose(2, 1, 0))


def test_by_layer_is_contiguous_and_moves_tokens_last():
    ids_NLK = np.arange(24).reshape(4, 3, 2)
    ids_LKN = by_layer(ids_NLK)
    assert ids_LKN.flags.c_contiguous
    assert all(ids_LKN[layer, rank, token] == ids_NLK[token, layer, rank] for token, layer, rank in np.ndindex(4, 3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shape(num_layers=0), r"num_layers \(0\) must be at least 1"),
        (lambda: shape(num_experts=0), r"num_experts \(0\) must be at least 1"),
        (lambda: shape(num_experts_per_tok=0), r"num_experts_per_tok \(0\) must be at least 1"),
        (lambda: shape(num_experts_per_tok=5), r"num_experts_per_tok \(5\) must be at most num_experts \(4\)"),
        (
            lambda: shape().check(GOOD.astype(float)),
            r"expert_ids \(float64 \[5, 3, 2\]\) must be integers \[tokens, 3, 2",
        ),
        (lambda: shape().check(GOOD[:, :2]), r"expert_ids \(int64 \[5, 2, 2\]\) must be integers \[tokens, 3, 2\]"),
        (lambda: shape().check(GOOD[..., 0]), r"expert_ids \(int64 \[5, 3\]\) must be integers \[tokens, 3, 2\]"),
        (lambda: shape().check(GOOD - 1), r"expert_ids \(-1\) must be at least 0 and below num_experts \(4\)"),
        (lambda: shape().check(GOOD + 1), r"expert_ids \(4\) must be at least 0 and below num_experts \(4\)"),
        (lambda: shape().check_mergeable(shape(num_layers=2)), r"other.num_layers \(2\) must equal num_layers \(3\)"),
        (
            lambda: shape().check_mergeable(shape(num_experts_per_tok=1)),
            r"other.num_experts_per_tok \(1\) must equal num_experts_per_tok \(2\)",
        ),
        (lambda: check_some_tokens(0), r"^num_tokens \(0\) must be at least 1; "),
        (
            lambda: shape().check_mergeable(shape(num_experts=5)),
            r"other.num_experts \(5\) must equal num_experts \(4\)",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
