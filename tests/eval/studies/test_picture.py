"""The small picture of a study: what stands in it, and where."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathmoe_eval.studies.comparison import compare_variants
from pathmoe_eval.studies.picture import _ticks, picture
from tests.eval.studies.conftest import MakeResults

SVG = "{http://www.w3.org/2000/svg}"
BITS = {"worse & wide": {0: 1.9, 1: 2.0, 2: 2.3}, "base": {0: 1.5, 1: 1.6, 2: 1.55}}


def test_every_run_stands_at_its_value(make_results: MakeResults) -> None:
    svg = picture("A <study>", "3 seeds", compare_variants(make_results(BITS), list(BITS), ["base"])["base"])
    root = ElementTree.fromstring(svg)
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert texts[:2] == ["A <study>", "3 seeds"] and texts[2].startswith("circle: a run")
    assert texts[3:5] == ["base", "worse & wide"], "the best one first"
    assert {"1.5500", "2.0667", "bits per byte", "path entropy, bits"} <= set(texts)

    circles = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in root.iter(f"{SVG}circle")]
    assert len(circles) == 12, "six runs in two panels"
    values = [*BITS["base"].values(), *BITS["worse & wide"].values()]
    x_of = dict(zip(values, [x for x, _ in circles[:6]], strict=True))
    scale = (x_of[2.3] - x_of[1.5]) / (2.3 - 1.5)
    assert all(x == pytest.approx(x_of[1.5] + scale * (value - 1.5), abs=0.1) for value, x in x_of.items())
    assert {y for _, y in circles[:3]} != {y for _, y in circles[3:6]}
    width = float(root.attrib["viewBox"].split()[2])
    assert all(0 < float(x) < width for x in re.findall(r"M(\S+) ", svg))


def test_one_run_needs_no_interval(make_results: MakeResults) -> None:
    svg = picture("One", "", compare_variants(make_results({"base": {0: 1.5}}), ["base"], ["base"])["base"])
    assert len(list(ElementTree.fromstring(svg).iter(f"{SVG}circle"))) == 2
    assert "H" not in re.sub(r"<text.*?</text>", "", svg)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_are_few_round_and_evenly_spaced(low: float, length: float) -> None:
    ticks = _ticks(low, low + length)
    assert 1 <= len(ticks) <= 6
    assert all(low - 1e-9 * abs(low) <= value <= low + length + 1e-9 * abs(low) for value, _ in ticks)
    for value, label in ticks:
        assert float(label) == pytest.approx(value, rel=1e-9, abs=1e-9)
    steps = [second - first for (first, _), (second, _) in pairwise(ticks)]
    for step in steps:
        assert step == pytest.approx(steps[0], rel=1e-6)
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(mantissa - round_one) for round_one in (1, 2, 5)) < 1e-4
