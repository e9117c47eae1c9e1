"""Numbers as a report shows them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.reports.number_format import UNDEFINED, bits, count, interval, layers, percent, ratio, standard_error


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (count(7_180_000), "7,180,000"),
        (count(18.4), "18"),
        (bits(22.2), "22.20"),
        (bits(0.00312), "0.0031"),
        (bits(-0.00312), "-0.0031"),
        (bits(-0.00001), "0.0000"),
        (bits(-0.5), "-0.50"),
        (percent(0.8561), "85.6%"),
        (ratio(0), "0.000"),
        (ratio(1.8741), "1.874"),
        (ratio(72.561), "72.56"),
        (ratio(4168.2), "4,168"),
        (ratio(3.2e9), "3.2e+09"),
        (interval([1.5, 2000.0]), "1.500 to 2,000"),
        (interval((1.5, 2.0)), "1.500 to 2.000"),
        (standard_error(None), ""),
        (standard_error(0.000456), "; standard error 0.00046"),
        (standard_error(0.0), "; standard error 0"),
        (standard_error(8765.4), "; standard error 8,765"),
        (layers(3, 1), "layer 3"),
        (layers(4, 4), "layers 4 to 7"),
    ],
)
def test_numbers_are_shown(shown: str, text: str) -> None:
    assert shown == text


def test_what_is_not_defined_is_a_dash() -> None:
    assert {count(None), bits(None), percent(None), ratio(None), interval(None)} == {UNDEFINED}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1e-2, 1e-2))
def test_nothing_is_shown_as_minus_zero(value: float) -> None:
    for shown in (count(value), bits(value), percent(value), ratio(value), interval((value, value))):
        assert not re.search(r"-[0.,]+(%|$|\s)", shown)
