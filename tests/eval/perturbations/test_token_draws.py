"""Draws against their definition in Python's whole numbers, and against the distributions that they should have."""

# Shapes: B batch, S sequence, T = B*S tokens, E draws of a token.

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from pathmoe_eval.perturbations.token_draws import TokenKeys, draw, prefix_keys, standard_normal

MASK = (1 << 64) - 1
GOLDEN, MULTIPLIER = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95


def mix(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def prefix_key(ids):
    key = 0
    for token in ids:
        key = (key * MULTIPLIER + mix((token + GOLDEN) & MASK)) & MASK
    return key


def unsigned(tensor):
    return [value & MASK for value in tensor.flatten().tolist()]


@given(
    st.lists(st.integers(0, 2**31), min_size=1, max_size=40),
    st.integers(-(2**70), 2**70),
    st.integers(0, 100),
    st.integers(1, 5),
)
def test_draws_are_those_written_out(ids, seed, layer, num_draws):
    prefix_T = prefix_keys(torch.tensor([ids])).flatten()
    expected = [prefix_key(ids[: end + 1]) for end in range(len(ids))]
    assert unsigned(prefix_T) == expected
    stream = mix((mix(seed & MASK) + layer) & MASK)
    draws = [mix((mix(key ^ stream) + e * GOLDEN) & MASK) for key in expected for e in range(1, num_draws + 1)]
    assert unsigned(draw(prefix_T, seed=seed, layer=layer, num_draws=num_draws)) == draws


def test_a_row_draws_the_same_alone_and_padded_among_others():
    ids_BS = torch.randint(0, 100, (3, 7))
    keys_BS = prefix_keys(ids_BS)
    for row in range(3):
        assert prefix_keys(ids_BS[row : row + 1, :5]).equal(keys_BS[row : row + 1, :5])
    assert len(keys_BS.unique()) == 21


def test_draws_are_uniform_and_gaussian_and_unrelated():
    prefix_T = prefix_keys(torch.arange(4000)[None]).flatten()
    draws = {(seed, layer): draw(prefix_T, seed=seed, layer=layer, num_draws=8) for seed in (0, 1) for layer in (0, 1)}
    for draws_TE in draws.values():
        uniform = draws_TE.numpy().ravel() / 2.0**64 + 0.5
        assert stats.kstest(uniform, "uniform").pvalue > 1e-3
        assert stats.kstest(standard_normal(draws_TE).numpy().ravel(), "norm").pvalue > 1e-3
        # Between the draws of a token, and of neighbouring tokens.
        correlations = np.corrcoef(draws_TE.numpy().T.astype(float)) - np.eye(8)
        assert np.abs(correlations).max() < 4.5 / 4000**0.5
        assert abs(np.corrcoef(draws_TE[1:, 0].numpy(), draws_TE[:-1, 0].numpy())[0, 1]) < 4.5 / 4000**0.5
    # Between streams.
    table = np.corrcoef(np.stack([draws_TE.numpy().ravel().astype(float) for draws_TE in draws.values()])) - np.eye(4)
    assert np.abs(table).max() < 4.5 / 32000**0.5


def test_the_ends_of_the_range_are_finite():
    ends = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    assert standard_normal(ends).isfinite().all()


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 2)

    def get_input_embeddings(self):
        return self.embedding


def test_tokens_that_were_not_seen_are_refused():
    model = Embedded()
    message = r"model \(Embedded\) must be given input_ids of all 3 tokens .* its embedding saw {}; do not pass"
    wanted = {"seed": 0, "layer": 0, "shape": (3, 4), "device": torch.device("cpu")}
    with TokenKeys(model) as keys:
        with pytest.raises(ValueError, match=message.format(0)):
            keys.draws(**wanted)
        model.embedding(torch.tensor([[1, 2]]))
        with pytest.raises(ValueError, match=message.format(2)):
            keys.draws(**wanted)
        model.embedding(torch.tensor([[1, 2, 3]]))
        expected = draw(prefix_keys(torch.tensor([[1, 2, 3]]))[0], seed=0, layer=0, num_draws=4)
        assert keys.draws(**wanted).equal(expected)
    assert not model.embedding._forward_pre_hooks
