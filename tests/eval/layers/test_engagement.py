"""Sustained engagement against loops over tokens, experts and layers; its nulls against all combinations of tokens."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

from itertools import combinations, groupby, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.layers.engagement import EngagementCounts, longest_runs


def counts_for(num_experts, num_picks, router_of_layer):
    return EngagementCounts(
        num_layers=len(router_of_layer),
        num_experts=num_experts,
        num_experts_per_tok=num_picks,
        router_of_layer=router_of_layer,
    )


def engagement(ids_NLK, num_experts, router_of_layer):
    counts = counts_for(num_experts, ids_NLK.shape[2], router_of_layer)
    counts.update(ids_NLK)
    return counts.result()


def runs_of(token, router_of_layer):
    """Lengths of a token's runs, of every expert: consecutive layers of equal routers whose sets have the expert."""
    runs = []
    for _, block in groupby(range(len(token)), key=lambda layer: router_of_layer[layer]):
        sets = [token[layer] for layer in block]
        for expert in {expert for picks in sets for expert in picks}:
            groups = groupby(sets, key=lambda picks: expert in picks)
            runs += [len(list(group)) for is_picked, group in groups if is_picked]
    return runs


def run_fields(runs, num_layers):
    lengths = range(1, num_layers + 1)
    return {
        "mean_length": sum(runs) / len(runs),
        "length_share": tuple(runs.count(m) / len(runs) for m in lengths),
        "run_share": tuple(sum(run >= m for run in runs) / len(runs) for m in lengths),
        "pick_share": tuple(sum(run for run in runs if run >= m) / sum(runs) for m in lengths),
    }


def assert_figures(figures, tokens, router_of_layer, token_share=True):
    """All that `figures` says is true of `tokens`."""
    num_layers = len(router_of_layer)
    top1 = [runs_of([picks[:1] for picks in token], router_of_layer) for token in tokens]
    sets = [runs_of(token, router_of_layer) for token in tokens]
    if token_share:
        longest = [max(runs) for runs in top1]
        shares = [sum(run >= m for run in longest) / len(tokens) for m in range(1, num_layers + 1)]
        assert figures.token_share == pytest.approx(shares, abs=1e-12)
    for found, runs in ((figures.top1_runs, top1), (figures.topk_runs, sets)):
        for name, expected in run_fields([run for of_token in runs for run in of_token], num_layers).items():
            assert getattr(found, name) == pytest.approx(expected, abs=1e-12), name


@st.composite
def routings(draw, max_tokens=8, max_layers=6):
    num_experts = draw(st.sampled_from([1, 2, 5, 16, 17, 40, 70]))
    num_picks = draw(st.integers(1, min(3, num_experts)))
    router_of_layer = draw(st.lists(st.integers(0, 2), min_size=1, max_size=max_layers))
    num_tokens = draw(st.integers(1, max_tokens))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # experts that the layers agree on, and noise
    score_NLE = rng.random((num_tokens, 1, num_experts)) + rng.random((num_tokens, len(router_of_layer), num_experts))
    return np.argsort(score_NLE, axis=2)[:, :, :num_picks], num_experts, router_of_layer


@given(routings())
def test_equals_brute_force(case):
    ids_NLK, _, router_of_layer = case
    result = engagement(*case)
    assert result.num_tokens == len(ids_NLK)
    assert_figures(result.all_layers.observed, ids_NLK.tolist(), [0] * len(router_of_layer))
    assert_figures(result.within_blocks.observed, ids_NLK.tolist(), router_of_layer)


@given(routings(max_tokens=3, max_layers=4))
def test_null_of_loads_is_every_layer_with_a_token_of_its_own(case):
    ids_NLK, _, router_of_layer = case
    num_layers = len(router_of_layer)
    chosen = product(ids_NLK.tolist(), repeat=num_layers)
    combined = [[token[layer] for layer, token in enumerate(tokens)] for tokens in chosen]
    result = engagement(*case)
    assert_figures(result.all_layers.null_loads, combined, [0] * num_layers)
    assert_figures(result.within_blocks.null_loads, combined, router_of_layer)


@pytest.mark.parametrize(("num_experts", "num_picks", "num_layers"), [(3, 1, 4), (4, 2, 3), (3, 3, 3)])
def test_null_of_uniform_loads_is_all_paths(num_experts, num_picks, num_layers):
    # rotations make every expert of a set the first equally often
    sets = [s[i:] + s[:i] for s in combinations(range(num_experts), num_picks) for i in range(num_picks)]
    paths = list(product(sets, repeat=num_layers))
    router_of_layer = [0, 0, *range(1, num_layers - 1)]
    result = engagement(np.array(paths[:2]), num_experts, router_of_layer)
    assert_figures(result.all_layers.null_uniform, paths, [0] * num_layers)
    assert_figures(result.within_blocks.null_uniform, paths, router_of_layer)


@given(routings(), st.data())
def test_batching_order_and_merging_do_not_change_one_bit(count_in_parts, case, data):
    ids_NLK, num_experts, router_of_layer = case
    parts = count_in_parts(lambda: counts_for(num_experts, ids_NLK.shape[2], router_of_layer), data, ids_NLK)
    assert parts.result() == engagement(*case)


@given(routings())
def test_duplicated_tokens_change_no_share(case):
    ids_NLK, *rest = case
    once, twice = engagement(ids_NLK, *rest), engagement(np.repeat(ids_NLK, 2, axis=0), *rest)
    assert twice.all_layers.observed == once.all_layers.observed
    assert twice.within_blocks.observed == once.within_blocks.observed


@given(routings(), st.integers(0, 2**32 - 1))
def test_one_relabelling_for_all_layers_changes_nothing(case, seed):
    ids_NLK, num_experts, router_of_layer = case
    names_E = np.random.default_rng(seed).permutation(num_experts)
    ours, theirs = engagement(*case), engagement(names_E[ids_NLK], num_experts, router_of_layer)
    assert theirs.all_layers.observed == ours.all_layers.observed
    assert theirs.all_layers.null_loads.token_share == pytest.approx(ours.all_layers.null_loads.token_share)


def test_copies_stay_and_relabelled_copies_do_not():
    ids_NK = np.argsort(np.random.default_rng(0).random((200, 9)), axis=1)[:, :3]
    copies = engagement(np.stack([ids_NK] * 6, axis=1), 9, (0, 0, 0, 1, 1, 1))
    for figures, longest in ((copies.all_layers.observed, 6), (copies.within_blocks.observed, 3)):
        expected = (1.0,) * longest + (0.0,) * (6 - longest)
        assert figures.token_share == figures.top1_runs.run_share == figures.topk_runs.pick_share == expected
        assert figures.topk_runs.mean_length == longest
    shifted = engagement(np.stack([(ids_NK + layer) % 9 for layer in range(6)], axis=1), 9, (0,) * 6)
    assert shifted.all_layers.observed.token_share == (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_independent_layers_with_uneven_loads_tend_to_the_null_of_their_loads():
    gumbel_NLE = np.random.default_rng(1).gumbel(size=(30_000, 8, 6)) + np.linspace(0, 2, 6)
    result = engagement(np.argsort(-gumbel_NLE, axis=2)[:, :, :2], 6, (0,) * 8).all_layers
    assert result.observed.token_share == pytest.approx(result.null_loads.token_share, abs=0.01)
    assert result.observed.topk_runs.pick_share == pytest.approx(result.null_loads.topk_runs.pick_share, abs=0.01)
    assert result.observed.topk_runs.mean_length == pytest.approx(result.null_loads.topk_runs.mean_length, rel=0.01)
    assert result.null_loads.token_share[2] > result.null_uniform.token_share[2] + 0.1


def test_more_layers_than_a_byte_counts():
    path_ids_LN = np.zeros((300, 2), dtype=np.uint8)
    path_ids_LN[150:, 1] = 1
    assert longest_runs(path_ids_LN, (range(300),)).tolist() == [300, 150]


GOOD = np.zeros((5, 2, 3), dtype=np.int64) + np.arange(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counts_for(4, 3, (0, 1)).result(), r"^num_tokens \(0\) must be at least 1; "),
        (
            lambda: counts_for(4, 3, (0, 1)).update(GOOD + 2),
            r"expert_ids \(4\) must be at least 0 and below num_experts",
        ),
        (lambda: counts_for(4, 3, (0, 1)).update(GOOD // 2), r"expert_ids \(\[0, 0, 1\] in layer 0\) must differ"),
        (lambda: counts_for(4, 3, (0, 1)).merge(counts_for(4, 3, (0, 0))), r"other.router_of_layer \(\(0, 0\)\) must"),
        (
            lambda: counts_for(4, 3, (0, 1)).merge(counts_for(4, 2, (0, 1))),
            r"other.num_experts_per_tok \(2\) must equal",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
