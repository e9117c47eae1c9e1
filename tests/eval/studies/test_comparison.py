"""Variants side by side: against scipy's paired tests and plain means."""

import numpy as np
import pytest
from scipy import stats

from pathmoe_eval.studies.comparison import compare_variants
from pathmoe_eval.studies.figures import PRIMARY
from tests.eval.studies.conftest import MakeResults

BITS = {
    "base": {0: 2.0, 1: 2.2, 2: 2.1},
    "close": {0: 1.99, 1: 2.21, 2: 2.08},
    "better": {0: 1.5, 1: 1.72, 2: 1.59},
    "none": {},
}


def test_the_best_comes_first_and_p_values_are_corrected(make_results: MakeResults) -> None:
    compared = compare_variants(make_results(BITS), list(BITS), ["base"])["base"]
    assert [one.name for one in compared] == ["better", "close", "base"]
    by_name = {one.name: one for one in compared}
    p_values = {
        name: stats.ttest_rel(list(BITS[name].values()), list(BITS["base"].values())).pvalue
        for name in ("close", "better")
    }
    assert by_name["base"].corrected_p is None and by_name["base"].figures[PRIMARY].difference is None
    # Of three comparisons, though one has no run yet.
    assert by_name["better"].corrected_p == pytest.approx(3 * p_values["better"])
    assert by_name["close"].corrected_p == 1.0 < 2 * p_values["close"]
    for name in ("close", "better", "base"):
        measured = by_name[name].figures[PRIMARY]
        assert measured.mean == pytest.approx(np.mean(list(BITS[name].values())))
        assert measured.by_seed == BITS[name]
    # Documents differ by a factor alone, so that only the seeds widen the interval.
    assert by_name["better"].documents_interval == pytest.approx((-0.51, -0.48), abs=1e-9)


def test_pairs_of_several_baselines_are_corrected_together(make_results: MakeResults) -> None:
    bits = BITS | {"close": {0: 1.99, 1: 2.21, 2: 2.05}}
    compared = compare_variants(make_results(bits), list(bits), ["base", "close"])
    assert list(compared) == ["base", "close"]
    p_values = {
        pair: stats.ttest_rel(*(list(bits[name].values()) for name in pair)).pvalue
        for pair in (("better", "base"), ("better", "close"), ("close", "base"))
    }
    # Five pairs: one of the two baselines, and two with each of the others, one of which has no run yet.
    expected, highest = {}, 0.0
    for rank, (pair, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        expected[pair] = highest = max(highest, min(1.0, (5 - rank) * p))
    for (name, baseline), p in expected.items():
        assert next(one for one in compared[baseline] if one.name == name).corrected_p == pytest.approx(p)
    base = next(one for one in compared["close"] if one.name == "base")
    assert base.corrected_p == pytest.approx(expected["close", "base"]), "the same pair the other way round"


def test_seeds_that_one_lacks_are_left_out_of_the_pairs(make_results: MakeResults) -> None:
    bits = {"base": {0: 2.0, 1: 2.5}, "other": {1: 2.0, 3: 1.0}}
    other, _ = compare_variants(make_results(bits), list(bits), ["base"])["base"]
    difference = other.figures[PRIMARY].difference
    assert difference is not None and (difference.num_seeds, difference.mean) == (1, -0.5)
    assert other.figures[PRIMARY].mean == 1.5


def test_runs_of_other_documents_have_no_interval_over_documents(make_results: MakeResults) -> None:
    results = make_results({"base": BITS["base"]}) + make_results({"other": BITS["close"]}, data_hash="1" * 16)
    by_name = {one.name: one for one in compare_variants(results, ["base", "other"], ["base"])["base"]}
    assert by_name["other"].documents_interval is None and by_name["other"].corrected_p is not None


def test_without_the_baseline_there_are_no_differences(make_results: MakeResults) -> None:
    (one,) = compare_variants(make_results({"other": {0: 1.0}}), ["base", "other"], ["base"])["base"]
    assert one.figures[PRIMARY].difference is None and one.corrected_p is None
    assert compare_variants([], ["base", "other"], ["base"])["base"] == []


def test_runs_without_bits_per_byte_do_not_count(make_results: MakeResults) -> None:
    results = make_results(BITS)
    lost = [one for one in results if one.variant == "close" or (one.variant, one.seed) == ("better", 0)]
    for one in lost:
        del one.figures[PRIMARY]
    compared = compare_variants(results, list(BITS), ["base"])["base"]
    assert [one.name for one in compared] == ["better", "base"]
    assert set(compared[0].figures[PRIMARY].by_seed) == set(compared[0].figures["perplexity"].by_seed) == {1, 2}
