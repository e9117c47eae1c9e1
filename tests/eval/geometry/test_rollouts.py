"""Rollouts: completions that depend on nothing else, and usage over them by its definition."""

# Shapes: S tokens, L MoE layers, E experts, K experts per token.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.geometry.rollouts import expert_ids, generate_completions, usage_over_rollout
from tests.eval.conftest import BuildMoE

PROMPTS = [np.array([3, 5, 7]), np.array([2, 9, 4, 6, 8]), np.array([11, 12])]


def test_completions_are_reproducible_whole_and_of_their_prompt(build_moe: BuildMoE) -> None:
    model = build_moe("olmoe")
    first, again = (generate_completions(model, PROMPTS, 6, seed=1) for _ in range(2))
    assert [len(one) for one in first] == [6, 6, 6]
    assert all((one == other).all() for one, other in zip(first, again, strict=True))
    others = generate_completions(model, PROMPTS, 6, seed=2)
    assert any((one != other).any() for one, other in zip(first, others, strict=True))


def test_experts_of_what_was_generated_are_those_of_a_forward(build_moe: BuildMoE) -> None:
    model = build_moe("path_b4")
    whole, prompt = expert_ids(model, [np.array([3, 5, 7, 9, 4]), np.array([3, 5, 7])])
    assert whole.shape == (5, 9, 2) and (whole[:3] == prompt).all()


@given(st.integers(2, 4), st.integers(1, 9), st.integers(1, 3), st.integers(0, 1000))
def test_similarities_are_cosines_of_visits(num: int, length: int, num_layers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, 5, size=num).tolist()
    ids = [rng.integers(5, size=(prompt + length, num_layers, 2)) for prompt in prompts]
    found = usage_over_rollout(ids, prompts, 5)
    assert found.num_rollouts == num and found.steps[-1] == length

    def mean_cosine(parts: list[np.ndarray], layer: int) -> float:
        visits = [np.bincount(part[:, layer].ravel(), minlength=5) for part in parts]
        pairs = [(a, b) for index, a in enumerate(visits) for b in visits[:index]]
        return float(np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs]))

    def over_layers(parts: list[np.ndarray]) -> float:
        return float(np.mean([mean_cosine(parts, layer) for layer in range(num_layers)]))

    of_prompts = [one[:prompt] for one, prompt in zip(ids, prompts, strict=True)]
    assert found.prompt == pytest.approx(over_layers(of_prompts))
    for place, step in enumerate(found.steps):
        whole = [one[: prompt + step] for one, prompt in zip(ids, prompts, strict=True)]
        alone = [one[prompt : prompt + step] for one, prompt in zip(ids, prompts, strict=True)]
        assert found.cumulative[place] == pytest.approx(over_layers(whole))
        assert found.generated[place] == pytest.approx(over_layers(alone))
        if step <= min(prompts):
            assert found.prompt_begun[place] == pytest.approx(over_layers([one[:step] for one in ids]))
        else:
            assert found.prompt_begun[place] is None
        low, high = found.generated_quartiles[place]
        assert low <= high and (num > 2 or low == pytest.approx(found.generated[place]))
    generated = [one[prompt:] for one, prompt in zip(ids, prompts, strict=True)]
    for layer in range(num_layers):
        assert found.last_generated_by_layer[layer] == pytest.approx(mean_cosine(generated, layer))
        assert found.prompt_by_layer[layer] == pytest.approx(mean_cosine(of_prompts, layer))


def test_whether_prompts_tell_which_pairs_stay_alike() -> None:
    # Two kinds of texts; each keeps to its experts from prompt into generation, or all have the same prompt.
    rng = np.random.default_rng(0)
    kinds = [0, 0, 0, 1, 1, 1]
    ids = [
        np.stack([rng.integers(3, size=40), rng.integers(3, size=40)], axis=1)[:, :, None] + 3 * kind for kind in kinds
    ]
    found = usage_over_rollout(ids, [20] * 6, 6)
    assert found.kept_order[-1] is not None and found.kept_order[-1] > 0.9
    for one in ids:
        one[:20] = ids[0][:20]
    assert usage_over_rollout(ids, [20] * 6, 6).kept_order == (None,) * 6
    assert usage_over_rollout(ids[:2], [20] * 2, 6).kept_order == (None,) * 6, "of one pair"


def test_rollouts_of_different_lengths_are_refused() -> None:
    ids = [np.zeros((4, 1, 1), int), np.zeros((5, 1, 1), int)]
    with pytest.raises(ValueError, match=r"^rollouts \(2, of \[2, 3\] tokens\) must be at least 2 of one length$"):
        usage_over_rollout(ids, [2, 2], 3)
