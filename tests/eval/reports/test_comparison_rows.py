"""Figures side by side: entropies at shared numbers of tokens, against subsamples; refusals; what leads."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest

from pathmoe_eval.paths.path_blocks import BlockCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.reports.comparison_rows import (
    comparison_notes,
    comparison_rows,
    concentrations_of,
    is_of_unlike_samples,
    sections_of,
    shared_num_tokens,
    unlike_runs,
)
from pathmoe_eval.reports.number_format import bits, count
from pathmoe_eval.reports.summary import rows_by_section
from pathmoe_eval.reports.summary_row import SummaryRow


def concentration_of(path_ids: np.ndarray, grid: list[int] | None = None) -> dict[str, Any]:
    from dataclasses import asdict

    from pathmoe_eval.paths.concentration import concentration

    shape = {"num_layers": path_ids.shape[1], "num_experts": 4}
    counts, blocks = PathCounts(**shape), BlockCounts(blocks=[range(1)], **shape)
    counts.update(path_ids)
    blocks.update(path_ids)
    return {"whole": asdict(concentration(counts, grid)), "blocks": [asdict(block) for block in blocks.result()]}


def test_equal_numbers_of_tokens_compare_as_they_are(make_report) -> None:
    reports = {"one": make_report(), "two": make_report(seed=1)}
    rows = comparison_rows(reports)
    for place, report in enumerate(reports.values()):
        entropy = report["sections"]["concentration"]["whole"]["entropy"]
        assert rows["Path entropy H, bits, at 300 tokens"][place].value == bits(entropy["entropy_bits"])
        assert rows["Effective paths, 2^H, at 300 tokens"][place].value == count(entropy["effective_paths"])
        assert rows["Distinct paths, at 300 tokens"][place].value == count(entropy["num_paths"])
    assert not any("subsamples" in note for note in comparison_notes(reports))


def test_other_numbers_compare_at_the_highest_shared_one_which_is_named(make_report) -> None:
    reports = {"one": make_report(num_tokens=300), "two": make_report(num_tokens=500)}
    rows = comparison_rows(reports)
    (name,) = [name for name in rows if name.startswith("Path entropy")]
    assert name == "Path entropy H, bits, at 256 tokens"
    for place, report in enumerate(reports.values()):
        curve = report["sections"]["concentration"]["whole"]["rarefaction"]
        at = curve["num_tokens"].index(256)
        assert rows[name][place].value == bits(curve["entropy_bits"][at])
        assert rows[name][place].num_tokens == 256
        assert rows["Effective paths, 2^H, at 256 tokens"][place].value == count(2 ** curve["entropy_bits"][at])
    assert any("subsamples of 256 tokens" in note for note in comparison_notes(reports))


def test_what_stands_at_a_shared_number_is_the_mean_over_all_subsamples() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.integers(0, 2, (4, 2)), rng.integers(0, 2, (7, 2))
    reports = {
        name: {"run": {}, "sections": {"concentration": concentration_of(paths)}}
        for name, paths in (("small", small), ("large", large))
    }
    rows = comparison_rows(reports)
    entropies = []
    for chosen in itertools.combinations(range(7), 4):
        paths = [tuple(large[token]) for token in chosen]
        shares = [paths.count(path) / 4 for path in set(paths)]
        entropies.append(-sum(share * math.log2(share) for share in shares))
    assert rows["Path entropy H, bits, at 4 tokens"][1].value == bits(sum(entropies) / len(entropies))


def test_entropies_without_a_shared_number_are_refused_in_one_line() -> None:
    paths = np.random.default_rng(0).integers(0, 4, (1000, 3))
    concentrations = {
        "one": concentration_of(paths[:400], [10, 100, 400]),
        "two": concentration_of(paths, [10, 100, 1000]),
    }
    with pytest.raises(ValueError, match="must share a number of tokens") as refusal:
        shared_num_tokens(concentrations)
    assert str(refusal.value) == (
        "reports (400 tokens of one, 1000 tokens of two) must share a number of tokens to compare entropies; "
        "evaluate all of them with --max_tokens 400"
    )
    concentrations["two"] = concentration_of(paths, [10, 400])
    assert shared_num_tokens(concentrations) == 400
    # A curve that ends before the sample does not hide the sample's own entropy.
    concentrations = {"one": concentration_of(paths, [10]), "two": concentration_of(paths, [10])}
    assert shared_num_tokens(concentrations) == 1000


def test_curves_over_powers_of_two_always_share_at_least_half() -> None:
    paths = np.random.default_rng(0).integers(0, 4, (70, 2))
    for few, many in itertools.combinations(range(1, 70, 3), 2):
        shared = shared_num_tokens({"one": concentration_of(paths[:few]), "two": concentration_of(paths[:many])})
        assert few / 2 < shared <= few


def test_all_else_is_that_of_the_reports_in_their_order(make_report) -> None:
    reports = {"one": make_report(), "two": make_report(seed=1)}
    rows = comparison_rows(reports)
    for place, report in enumerate(reports.values()):
        for section, of_section in rows_by_section(report["sections"]).items():
            if section != "concentration":
                assert all(rows[row.name][place] == row for row in of_section)
    names = list(rows)
    assert (
        names.index("Bits per byte") < names.index("Distinct paths, at 300 tokens") < names.index("Router confidence")
    )


def test_companions_lead_where_they_lead_in_one_report_and_the_note_names_it(make_report) -> None:
    reports = {"shared": make_report(), "own": make_report(router_of_layer=(0, 1, 2, 3, 4))}
    rows = comparison_rows(reports)
    names = list(rows)
    assert names.index("Agreement after matching experts") < names.index("Same index in neighbouring layers")
    assert rows["Jaccard, layers of one router"][1] is None
    assert names.index("Jaccard, layers of one router") < names.index("Load entropy, share of its maximum")
    notes = comparison_notes(reports)
    assert [note for note in notes if "share a router in own:" in note]
    del reports["own"]
    assert not any("share a router" in note for note in comparison_notes(reports | {"again": reports["shared"]}))


def test_other_texts_are_named(make_report) -> None:
    one = make_report()
    two = copy.deepcopy(one)
    two["run"]["data"] = "else.txt"
    (note,) = comparison_notes({"one": one, "two": two})
    assert note.endswith("one: 300 tokens of data.jsonl; two: 300 tokens of else.txt.")
    assert comparison_notes({"one": one, "two": one}) == []


@pytest.mark.parametrize("key", ["max_length", "stride", "dtype", "data_hash"])
def test_reports_that_were_read_otherwise_are_named(key: str, make_report) -> None:
    one, two, unknown = make_report(), make_report(), make_report()
    for report in (one, two):
        report["run"] |= {"max_length": 64, "stride": 32, "dtype": "float32", "data_hash": "01", "model_hash": "23"}
    two["run"]["model_hash"] = "45"
    assert unlike_runs({"one": one, "two": two, "unknown": unknown}) is None
    # An earlier part of a report knows it, too.
    two["earlier_runs"] = [two["run"] | {key: 7}]
    two["run"] = {name: value for name, value in two["run"].items() if name != key}
    assert unlike_runs({"one": one, "two": two, "unknown": unknown}) == (
        f"The reports differ in {key} (one: {one['run'][key]}, two: 7): their figures do not compare like for like."
    )


def test_a_row_is_of_unlike_samples_where_figures_have_other_numbers_of_tokens() -> None:
    few, many = SummaryRow("x", "1", "", 10), SummaryRow("x", "1", "", 20)
    assert is_of_unlike_samples([few, many])
    assert not is_of_unlike_samples([few, None, few])
    assert not is_of_unlike_samples([None, many])


def test_a_section_that_is_not_everywhere_stands_where_it_is(make_report) -> None:
    one, two = make_report(), make_report(seed=1)
    del two["sections"]["concentration"]
    reports = {"one": one, "two": two}
    assert list(sections_of(reports, "concentration")) == ["one"]
    first, second = comparison_rows(reports)["Distinct paths, at 300 tokens"]
    assert first is not None
    assert second is None


def test_a_sketch_compares_at_its_own_tokens_only(make_report) -> None:
    reports = {"sketch": make_report(sketch=True), "exact": make_report(seed=1)}
    rows = comparison_rows(reports)
    first, second = rows["Path entropy H, bits, at 300 tokens"]
    assert first.value == bits(reports["sketch"]["sections"]["sketch"]["whole"]["entropy"]["entropy_bits"])
    assert first.beside.endswith("; standard error 0") and "error" not in second.beside
    assert len({name for name in rows if name.startswith("Path entropy")}) == 1
    assert "Paths of sketch were counted in fixed memory; their standard errors stand beside them." in (
        comparison_notes(reports)
    )
    with pytest.raises(ValueError, match=r"evaluate all of them with --max_tokens 300") as refusal:
        comparison_rows(reports | {"exact": make_report(num_tokens=500)})
    assert "300 tokens of sketch, 500 tokens of exact" in str(refusal.value)


def test_exact_counts_come_before_a_sketch_of_the_same_report(make_report) -> None:
    both, other = make_report(), make_report(seed=1)
    both["sections"]["sketch"] = make_report(sketch=True)["sections"]["sketch"]
    reports = {"both": both, "other": other}
    assert comparison_rows(reports) == comparison_rows({"both": make_report(), "other": other})
    assert concentrations_of(reports)["both"] == both["sections"]["concentration"]
