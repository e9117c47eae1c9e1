"""The hypergeometric probabilities against ratios of exact integers."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.paths.hypergeometric import hypergeometric_pmf


@given(st.integers(1, 60), st.data())
def test_equals_the_ratio_of_binomial_coefficients(population, data):
    marked, drawn = (data.draw(st.integers(0, population)) for _ in range(2))
    x = np.arange(-2, population + 3)
    expected = [
        comb(marked, k) * comb(population - marked, drawn - k) / comb(population, drawn) if 0 <= k <= drawn else 0
        for k in x.tolist()
    ]
    assert hypergeometric_pmf(x, population, marked, drawn) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize(("marked", "drawn", "x"), [(3, 20_000, 1), (1000, 6_000, 140), (10_000, 4_000, 990)])
def test_keeps_its_digits_in_a_population_of_forty_thousand(marked, drawn, x):
    exact = Fraction(comb(marked, x) * comb(40_000 - marked, drawn - x), comb(40_000, drawn))
    assert hypergeometric_pmf(x, 40_000, marked, drawn) == pytest.approx(float(exact), rel=1e-11)


@pytest.mark.parametrize("marked", [1, 40, 7000, 3_590_000, 7_180_000])
@pytest.mark.parametrize("drawn", [0, 1, 1000, 3_590_000, 7_180_000])
def test_sums_to_one_at_millions(marked, drawn):
    mean = marked * drawn / 7_180_000
    x = np.arange(max(0, int(mean) - 20_000), int(mean) + 20_000)
    assert hypergeometric_pmf(x, 7_180_000, marked, drawn).sum() == pytest.approx(1, abs=1e-11)
