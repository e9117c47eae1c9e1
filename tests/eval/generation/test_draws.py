"""Draws without replacement against their law, written out for the first and the second, and their independence."""

# Shapes: V vocabulary.

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pathmoe_eval.generation.draws import draw_tokens, top_mass

PROBABILITIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
PLACES = 8000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_and_second_draw_have_the_law_of_sampling_without_replacement(temperature):
    log_V = np.log(PROBABILITIES)
    drawn = [tuple(draw_tokens(log_V, 2, temperature, 7, (1, place))) for place in range(PLACES)]
    p_V = PROBABILITIES ** (1 / temperature)
    p_V /= p_V.sum()
    expected = {
        (first, second): p_V[first] * p_V[second] / (1 - p_V[first])
        for first in range(5)
        for second in range(5)
        if first != second
    }
    assert sum(expected.values()) == pytest.approx(1)
    found = [drawn.count(pair) for pair in expected]
    assert sum(found) == PLACES
    frequent = np.array(list(expected.values())) * PLACES > 5
    rest = ~frequent
    observed, likely = np.array(found), np.array(list(expected.values())) * PLACES
    cells = [*observed[frequent], observed[rest].sum()] if rest.any() else observed
    expectations = [*likely[frequent], likely[rest].sum()] if rest.any() else likely
    assert chisquare(cells, expectations).pvalue > 1e-3


def test_one_token_has_the_law_of_a_plain_sample():
    drawn = [draw_tokens(np.log(PROBABILITIES), 1, 1.0, 3, (place,))[0] for place in range(PLACES)]
    assert chisquare(np.bincount(drawn, minlength=5), PROBABILITIES * PLACES).pvalue > 1e-3


@pytest.mark.parametrize("places", [((0,), (1,)), ((0,), (0, 0)), ((2, 1), (2, 2)), ((1, 0), (0, 1))])
def test_draws_of_other_places_are_independent(places):
    # Over seeds, since a place is a place for all of them.
    pairs = np.zeros((5, 5))
    for seed in range(3000):
        first, second = (draw_tokens(np.log(PROBABILITIES), 1, 1.0, seed, place)[0] for place in places)
        pairs[first, second] += 1
    expected = np.outer(PROBABILITIES, PROBABILITIES) * 3000
    assert chisquare(pairs.ravel(), expected.ravel()).pvalue > 1e-3


LOGITS = st.lists(st.floats(-20, 20), min_size=1, max_size=12)


@given(LOGITS, st.integers(1, 12), st.sampled_from([0.0, 1e-300, 0.7, 1e6]), st.integers(0, 5))
def test_tokens_differ_are_as_many_as_possible_and_the_same_again(logits, number, temperature, seed):
    log_V = np.array(logits) - np.logaddexp.reduce(logits)
    drawn = draw_tokens(log_V, number, temperature, seed, (4, 2))
    assert len(set(drawn)) == len(drawn) == min(number, len(logits))
    draw_tokens(log_V, 3, temperature, seed, (9,))
    assert draw_tokens(log_V, number, temperature, seed, (4, 2)) == drawn
    assert draw_tokens(log_V, 1, temperature, seed, (4, 2)) == drawn[:1]
    if temperature <= 1e-300:
        assert log_V[drawn[0]] == log_V.max()


def test_temperature_zero_takes_the_likeliest_and_of_equals_the_lowest_id():
    assert draw_tokens(np.log([0.1, 0.4, 0.1, 0.4]), 3, 0.0, 5, (1,)) == [1, 3, 0]
    assert draw_tokens(np.log([0.1, 0.4, 0.1, 0.4]), 1, 0.0, 5, (1,)) == [1]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_cannot_come_is_never_drawn(temperature):
    log_V = np.array([-np.inf, np.log(0.5), -np.inf, np.log(0.5)])
    assert {tuple(sorted(draw_tokens(log_V, 4, temperature, seed, ()))) for seed in range(20)} == {(1, 3)}


@given(LOGITS, st.integers(1, 14))
def test_mass_of_the_likeliest(logits, number):
    log_V = np.array(logits) - np.logaddexp.reduce(logits)
    expected = sum(sorted(np.exp(log_V), reverse=True)[:number])
    assert top_mass(log_V, number) == pytest.approx(min(1.0, expected), rel=1e-12)
