"""Rises of perplexity: written out, in closed form, and intervals against a bootstrap in plain loops."""

# Shapes: M documents, R seeds.

import json
import math
import statistics
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.perturbations.robustness import PER_BLOCK, PER_LAYER, PerturbedSums, robustness


def sums(nats, name="noise", setting=1.0, share=None):
    return PerturbedSums(intervention=name, setting=setting, nats_RM=np.array(nats, dtype=float), listed_share=share)


def found_in(free, tokens, perturbed, routers=(0, 1), **settings):
    settings = {"num_resamples": 20} | settings
    return robustness(np.array(free, dtype=float), np.array(tokens), perturbed, routers, **settings)


@st.composite
def scored(draw):
    num_documents, num_seeds = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    tokens = draw(st.lists(st.integers(0, 9), min_size=num_documents, max_size=num_documents).filter(any))
    rows = [[draw(st.floats(0, 6)) * number for number in tokens] for _ in range(num_seeds + 1)]
    return rows[0], tokens, rows[1:]


@given(scored())
def test_figures_are_those_written_out(case):
    free, tokens, rows = case
    result = found_in(free, tokens, [sums(rows, setting=0.3, share=0.5)])
    (one,) = result.perturbed
    of_seed = [math.exp(math.fsum(row) / sum(tokens)) for row in rows]
    free_perplexity = math.exp(math.fsum(free) / sum(tokens))
    assert (result.num_documents, result.num_tokens) == (sum(number > 0 for number in tokens), sum(tokens))
    assert result.free_perplexity == free_perplexity
    assert one.perplexity_of_seed == tuple(of_seed)
    assert one.perplexity == math.fsum(of_seed) / len(of_seed)
    assert one.rise_percent == pytest.approx(100 * (one.perplexity - free_perplexity) / free_perplexity, abs=1e-9)
    if len(rows) > 1:
        spread = 100 * statistics.stdev(of_seed) / free_perplexity
        assert one.rise_percent_seed_std == pytest.approx(spread, rel=1e-9, abs=1e-9)
    else:
        assert one.rise_percent_seed_std is None
    assert (one.num_seeds, one.setting, one.listed_share) == (len(rows), 0.3, 0.5)
    assert (one.rise_percent_interval is None) == (result.num_documents < 2)
    json.dumps(asdict(result), allow_nan=False)


def test_no_change_rises_by_nothing_whatever_the_documents():
    free = [1.0, 20.0, 3.0]
    (one,) = found_in(free, [1, 4, 2], [sums([free, free])]).perturbed
    assert (one.rise_percent, one.rise_percent_interval, one.rise_percent_seed_std) == (0, (0, 0), 0)


def test_pairing_leaves_a_common_factor_exact():
    # Documents differ a hundredfold, and each of their tokens loses the same.
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, 30)
    free = tokens * rng.uniform(0.1, 5, 30)
    (one,) = found_in(free, tokens, [sums([free + tokens * math.log(2)])]).perturbed
    assert one.rise_percent == pytest.approx(100)
    assert one.rise_percent_interval == pytest.approx((100, 100))


def test_the_interval_is_that_of_resampled_documents():
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 50, 25)
    free = tokens * rng.uniform(1, 3, 25)
    rows = [free + tokens * rng.uniform(0, 1, 25) for _ in range(3)]
    (one,) = found_in(free, tokens, [sums(rows)], num_resamples=4000, confidence=0.9).perturbed
    rises = []
    for _ in range(4000):
        picked = rng.integers(0, 25, 25)
        base = math.exp(free[picked].sum() / tokens[picked].sum())
        mean = statistics.fmean(math.exp(row[picked].sum() / tokens[picked].sum()) for row in rows)
        rises.append(100 * (mean / base - 1))
    assert one.rise_percent_interval == pytest.approx(np.percentile(rises, [5, 95]), rel=0.03)


def test_documents_without_scored_tokens_change_nothing():
    whole = found_in([3.0, 0.0, 5.0], [2, 0, 4], [sums([[4.0, 0.0, 9.0]])])
    assert whole == found_in([3.0, 5.0], [2, 4], [sums([[4.0, 9.0]])])


def test_what_exceeds_floats_is_none():
    result = found_in([1.0, 2.0], [1, 1], [sums([[1000.0, 900.0], [1.0, 1.0]]), sums([[1.0, 440.0]])])
    beyond, resampled = result.perturbed
    assert beyond.perplexity_of_seed[0] is None
    assert beyond.perplexity_of_seed[1] == math.exp(1)
    assert (beyond.perplexity, beyond.rise_percent, beyond.rise_percent_interval) == (None, None, None)
    assert beyond.rise_percent_seed_std is None
    assert resampled.rise_percent > 1e90
    assert found_in([2000.0], [1], [sums([[1.0]])]).perturbed[0].rise_percent is None
    json.dumps(asdict(result), allow_nan=False)


@pytest.mark.parametrize(("routers", "num_routers", "word"), [((0, 1, 2), 3, "own"), ((0, 0, 1), 2, "agreement")])
def test_permutations_stand_side_by_side_with_the_reason(routers, num_routers, word):
    layer, block = sums([[4.0, 9.0]], PER_LAYER, None), sums([[3.5, 8.0]], PER_BLOCK, None)
    result = found_in([3.0, 5.0], [2, 4], [layer, sums([[4.0, 9.0]]), block], routers)
    both = result.permutations
    assert (both.per_layer, both.per_block) == (result.perturbed[0], result.perturbed[2])
    assert (both.num_layers, both.num_routers) == (3, num_routers)
    assert word in both.reason
    assert found_in([3.0, 5.0], [2, 4], [layer], routers).permutations is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: found_in([1.0], [0], []), r"^--data \(0 scored tokens\) must hold a document of at least 2 tokens"),
        (
            lambda: found_in([1.0, 2.0], [1, 1], [sums([[1.0]])]),
            r"^nats of noise \(\[1, 1\]\) must be one row a seed of the 2 documents; score the same ones$",
        ),
        (lambda: found_in([1.0], [1], [], num_resamples=1), r"^--num_resamples \(1\) must be at least 2; raise it$"),
        (lambda: found_in([1.0], [1], [], confidence=1.0), r"^--confidence \(1.0\) must lie between 0 and 1; change"),
    ],
)
def test_bad_input_is_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message):
        build()
