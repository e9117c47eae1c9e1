"""Router noise: a function of its seed and layer, and Gaussian."""

# Shapes: T tokens, E experts.

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathmoe.noise import fold_seed, layer_noise

CPU = torch.device("cpu")


def noise(noise_seed: int | None, layer: int, std: float = 1.0, num_tokens: int = 500) -> Tensor:
    return layer_noise((num_tokens, 16), std, noise_seed, layer, CPU)


def test_same_seed_and_layer_same_bits_whatever_was_drawn_before() -> None:
    first_TE = noise(7, 3)
    torch.randn(13)
    state = torch.get_rng_state()
    assert torch.equal(noise(7, 3), first_TE)
    assert torch.equal(torch.get_rng_state(), state)  # and it draws nothing from the default generator


@given(st.integers(0, 2**63 - 1), st.integers(0, 100))
def test_any_seed_gives_a_generator(noise_seed: int, layer: int) -> None:
    assert noise(noise_seed, layer, num_tokens=1).isfinite().all()


def test_neighbouring_seeds_and_layers_are_independent() -> None:
    samples = torch.stack([noise(seed, layer).flatten() for seed in range(4) for layer in range(4)])
    correlation = torch.corrcoef(samples) - torch.eye(len(samples))
    # Five standard errors.
    assert correlation.abs().max() < 5 / samples.shape[1] ** 0.5


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_is_gaussian_with_the_given_standard_deviation(std: float) -> None:
    samples = noise(0, 0, std, num_tokens=4000) / std
    moments = [samples.pow(k).mean().item() for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.1)
    assert samples.dtype == torch.float32


def test_without_a_seed_torchs_default_generator_decides() -> None:
    torch.manual_seed(5)
    first_TE, second_TE = noise(None, 0), noise(None, 0)
    torch.manual_seed(5)
    assert torch.equal(noise(None, 0), first_TE)
    assert not torch.equal(first_TE, second_TE)


def test_folded_seeds_stay_what_they_are() -> None:
    # A resumed run must draw what the run before it would have drawn, also after an upgrade of ours.
    assert fold_seed() == 6510301506637419378
    assert fold_seed(0) == 4246866556266386882
    assert fold_seed(0, 1, 2, 3) == 4019600915400777878
    assert fold_seed(12, 3) != fold_seed(1, 23)
    assert fold_seed(1, 2) != fold_seed(2, 1)


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_folded_seeds_are_63_bit(parts: list[int]) -> None:
    assert 0 <= fold_seed(*parts) < 2**63


def test_folded_seeds_of_near_parts_differ_in_half_their_bits() -> None:
    seeds = [fold_seed(step, 1) for step in range(400)]
    assert len(set(seeds)) == 400
    flips = [bin(left ^ right).count("1") for left, right in pairwise(seeds)]
    assert sum(flips) / len(flips) == pytest.approx(63 / 2, abs=1)
