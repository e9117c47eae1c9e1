"""Intervals over documents: against the theory of a mean, and what all columns of a resample have in common."""

# Shapes: M documents.

import numpy as np
import pytest

from pathmoe_eval import bootstrap
from pathmoe_eval.bootstrap import Bootstrap


def mean(values, axis):
    return values.mean(axis=axis)


def settings(**fields):
    return Bootstrap(**{"num_resamples": 50, "seed": 0, "confidence": 0.95} | fields)


@pytest.mark.parametrize(("confidence", "deviations"), [(0.95, 1.960), (0.5, 0.674)])
def test_the_interval_of_a_mean_is_that_of_the_normal_distribution(confidence, deviations):
    values_M = np.random.default_rng(0).gamma(4.0, size=900)
    error = values_M.std() / 30
    expected = values_M.mean() + deviations * error * np.array([-1, 1])
    found = settings(num_resamples=8000, confidence=confidence).interval([values_M], mean)
    assert found == pytest.approx(tuple(expected), abs=0.1 * error)


def test_a_resample_takes_the_same_documents_of_each_column():
    values_M = np.random.default_rng(1).random(20)

    def difference(first, second, axis):
        return (second - first).sum(axis=axis)

    assert settings().interval([values_M, values_M + 0.5], difference) == pytest.approx((10, 10))


def test_the_seed_decides_and_the_batch_does_not(monkeypatch):
    columns = [np.random.default_rng(2).random(30)]
    whole = settings().interval(columns, mean)
    assert whole != settings(seed=1).interval(columns, mean)
    monkeypatch.setattr(bootstrap, "_CELLS_PER_BATCH", 1)
    assert settings().interval(columns, mean) == whole


def test_there_is_none_of_one_document_or_beyond_floats():
    assert settings().interval([np.ones(1)], mean) is None
    assert settings().interval([np.array([1.0, np.inf])], mean) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_resamples": 1}, r"^--num_resamples \(1\) must be at least 2; raise it$"),
        ({"confidence": 1.0}, r"^--confidence \(1\.0\) must lie between 0 and 1; change it$"),
        ({"confidence": 0.0}, r"^--confidence \(0\.0\) must lie between 0 and 1; change it$"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        settings(**fields)
