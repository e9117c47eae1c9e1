"""Joined forwards against a token-by-token definition."""

# Shapes: T tokens of one forward, N tokens of all, L MoE layers, E experts, K experts per token, B batch, S sequence.

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.traces.recorded_routing import ForwardRouting, join_forwards


@st.composite
def recordings(draw):
    """Forwards of one model; few distinct weights, so that there are ties."""
    num_layers, num_experts_per_tok = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    num_experts = draw(st.sampled_from([4, 256, 257, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    forwards = []
    for shape in draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4)):
        size = (num_layers, shape[0] * shape[1], num_experts_per_tok)
        weights = torch.from_numpy(rng.integers(0, 4, size) / 4)
        forwards.append(
            ForwardRouting(
                expert_ids_LTK=torch.from_numpy(rng.integers(0, num_experts, size)),
                weights_LTK=weights.to(draw(st.sampled_from([torch.float32, torch.bfloat16]))),
                logits_LTE=torch.from_numpy(rng.normal(size=(*size[:2], num_experts))),
                shape=shape,
            )
        )
    return num_experts, forwards


def brute_force(forwards):
    ids, weights, logits = [], [], []
    for forward in forwards:
        for token in range(forward.expert_ids_LTK.shape[1]):
            rows = []
            for layer in range(forward.expert_ids_LTK.shape[0]):
                pairs = zip(
                    forward.weights_LTK[layer, token].tolist(),
                    forward.expert_ids_LTK[layer, token].tolist(),
                    strict=True,
                )
                rows.append(sorted(pairs, key=lambda pair: -pair[0]))  # Python's sort is stable
            ids.append([[expert for _, expert in row] for row in rows])
            weights.append([[weight for weight, _ in row] for row in rows])
            logits.append([layer_TE[token].tolist() for layer_TE in forward.logits_LTE])
    return ids, weights, logits


@given(recordings())
def test_equals_brute_force(case):
    num_experts, forwards = case
    recorded = join_forwards(forwards, num_experts, weights=True)
    ids, weights, logits = brute_force(forwards)
    assert recorded.expert_ids_NLK.tolist() == ids
    assert recorded.weights_NLK.tolist() == weights
    np.testing.assert_array_equal(recorded.logits_NLE, np.array(logits, dtype=np.float32))
    assert recorded.expert_ids_NLK.dtype == (np.uint8 if num_experts <= 256 else np.uint16)
    assert recorded.weights_NLK.dtype == np.float32
    assert recorded.num_tokens == tuple(forward.expert_ids_LTK.shape[1] for forward in forwards)
    assert join_forwards(forwards, num_experts, weights=False).weights_NLK is None


def forward_of(expert_ids, shape):
    ids = torch.tensor(expert_ids, dtype=torch.int16).reshape(1, -1, 1)
    return ForwardRouting(expert_ids_LTK=ids, weights_LTK=torch.ones(ids.shape), logits_LTE=None, shape=shape)


def test_rows_by_sequence_put_steps_behind_one_another():
    # expert ids are 10 * sequence + position
    forwards = [forward_of([0, 1, 2, 10, 11, 12], (2, 3)), forward_of([3, 13], (2, 1)), forward_of([4, 14], (2, 1))]
    recorded = join_forwards(forwards, 20, weights=False)
    rows_BS = recorded.rows_by_sequence()
    assert recorded.expert_ids_NLK[rows_BS, 0, 0].tolist() == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: join_forwards([forward_of([4], (1, 1))], 4, weights=False),
            r"expert_ids \(4\) must be at least 0 and",
        ),
        (lambda: join_forwards([forward_of([-1], (1, 1))], 4, weights=False), r"expert_ids \(-1\) must be at least 0"),
        (lambda: join_forwards([forward_of([256], (1, 1))], 256, weights=False), r"num_experts \(256\); record"),
        (
            lambda: join_forwards(
                [forward_of([0, 1], (2, 1)), forward_of([0], (1, 1))], 4, weights=False
            ).rows_by_sequence(),
            r"shapes \(batch sizes \[1, 2\]\) must have one batch size",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
