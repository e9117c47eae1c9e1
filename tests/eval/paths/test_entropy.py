"""Entropy estimates against their formulas written as sums over outcomes, closed forms, and known sources."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.paths.entropy import chao_wang_jost_bits, entropy_estimates

COUNTS = st.lists(st.integers(1, 12), min_size=1, max_size=40)


def frequencies(counts):
    return np.unique(np.asarray(counts, dtype=np.int64), return_counts=True)


def chao_wang_jost(counts):
    """The formula of the paper, sum by sum, with digits enough for what cancels in it."""
    n, f1, f2 = sum(counts), counts.count(1), counts.count(2)
    seen = math.fsum(x / n * math.fsum(1 / k for k in range(x, n)) for x in counts)
    if f1 == 0:
        return seen / math.log(2)
    with localcontext(prec=500):
        a = Decimal(2 * f2) / ((n - 1) * f1 + 2 * f2) if f2 else Decimal(2) / ((n - 1) * (f1 - 1) + 2)
        unseen = -a.ln() - sum((1 - a) ** r / r for r in range(1, n)) if a < 1 else Decimal(0)
        unseen *= (1 - a) ** (1 - n) * f1 / n if a < 1 else 1
    return (seen + float(unseen)) / math.log(2)


def brute_force(counts):
    n, k = sum(counts), len(counts)
    plug_in = math.fsum(c / n * math.log2(n / c) for c in counts)
    variance = math.fsum(c / n * math.log2(n / c) ** 2 for c in counts) - plug_in**2
    coverage = 1 - min(counts.count(1), n - 1) / n
    q = [coverage * c / n for c in counts]
    return {
        "plug_in_bits": plug_in,
        "plug_in_standard_error_bits": math.sqrt(max(variance, 0) / n),
        "miller_madow_bits": plug_in + (k - 1) / (2 * n * math.log(2)),
        "chao_shen_bits": math.fsum(-x * math.log2(x) / (1 - (1 - x) ** n) for x in q),
        "chao_wang_jost_bits": chao_wang_jost(counts),
        "coverage": 1 - counts.count(1) / n,
    }


@given(COUNTS)
def test_equals_brute_force(counts):
    result = vars(entropy_estimates(*frequencies(counts)))
    assert result == {
        name: pytest.approx(value, rel=1e-8, abs=1e-7 if "error" in name else 1e-9)
        for name, value in brute_force(counts).items()
    }


@pytest.mark.parametrize(
    "counts",
    [[1], [1, 1], [1] * 50, [2], [1, 2], [500], [1, 1, 998], [1] + [2] * 300, [1] * 300 + [2, 500], [3] * 100],
)
def test_chao_wang_jost_equals_its_formula_at_the_edges(counts):
    assert chao_wang_jost_bits(*frequencies(counts)) == pytest.approx(chao_wang_jost(counts), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("num_singletons", [10, 10**5, 10**9])
def test_chao_wang_jost_is_finite_at_any_size(num_singletons):
    # nearly nothing seen twice: the term for the unseen tends to f1/n (ln(1/(n A)) - Euler's constant)
    sizes, multiplicity = np.array([1, 2]), np.array([num_singletons, 1])
    n = num_singletons + 2
    a = 2 / ((n - 1) * num_singletons + 2)
    seen = math.log(n - 1) + np.euler_gamma
    expected = (seen + math.log(1 / (n * a)) - np.euler_gamma) / math.log(2)
    result = chao_wang_jost_bits(sizes, multiplicity)
    assert result == pytest.approx(expected, rel=0.2 if num_singletons == 10 else 1e-3)
    assert result > math.log2(n)


def sampled(weights, num_samples, seed):
    counts = np.random.default_rng(seed).multinomial(num_samples, weights / weights.sum())
    return entropy_estimates(*frequencies(counts[counts > 0]))


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0])
def test_corrections_are_nearer_the_truth_than_plug_in_while_outcomes_are_unseen(exponent):
    weights = 1 / np.arange(1, 4097) ** exponent
    share = weights / weights.sum()
    truth = -float(np.sum(share * np.log2(share)))
    results = [sampled(weights, 2000, seed) for seed in range(10)]

    def error(name):
        return abs(np.mean([getattr(r, name) for r in results]) - truth)

    assert error("miller_madow_bits") < error("plug_in_bits")
    assert error("chao_shen_bits") < error("plug_in_bits") / 2
    assert error("chao_wang_jost_bits") < error("plug_in_bits") / 4


def test_miller_madow_and_the_standard_error_hold_where_every_outcome_is_seen_often():
    weights = np.arange(1.0, 65.0)
    share = weights / weights.sum()
    truth = -float(np.sum(share * np.log2(share)))
    results = [sampled(weights, 5000, seed) for seed in range(200)]
    plug_in = np.array([r.plug_in_bits for r in results])
    corrected = np.array([r.miller_madow_bits for r in results])
    standard_error = np.mean([r.plug_in_standard_error_bits for r in results])
    assert np.std(plug_in) == pytest.approx(standard_error, rel=0.2)
    assert abs(corrected.mean() - truth) < 4 * standard_error / math.sqrt(200)
    assert truth - plug_in.mean() > 4 * standard_error / math.sqrt(200)


def test_one_outcome_has_no_entropy():
    result = vars(entropy_estimates(*frequencies([1000])))
    assert result == dict.fromkeys(result, 0.0) | {"coverage": 1.0}
