"""The summary's rows hold the figures of their sections, each with its chance and its tokens."""

from typing import Any

import pytest

from pathmoe_eval.reports.number_format import bits, count, percent, ratio
from pathmoe_eval.reports.summary import SUMMARY_OF_SECTION, perturbed_name, rows_by_section, summary_rows
from pathmoe_eval.reports.summary_row import mean


def named(sections: dict[str, Any]) -> dict[str, tuple[str, str, int]]:
    rows = summary_rows(sections)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: (row.value, row.beside, row.num_tokens) for row in rows}


def test_every_figure_stands_with_its_chance_and_its_tokens(make_report) -> None:
    sections = make_report()["sections"]
    rows = named(sections)
    assert all(value and beside and tokens in (300, 296) for value, beside, tokens in rows.values())
    whole, consistency = sections["concentration"]["whole"], sections["consistency"]
    entropy, overlap = whole["entropy"], consistency["overlap"]
    assert rows["Path entropy H, bits"] == (
        bits(entropy["entropy_bits"]),
        f"{percent(entropy['entropy_bits'] / entropy['ceiling_bits'])} of the ceiling, {bits(entropy['ceiling_bits'])}",
        300,
    )
    assert rows["Effective paths, 2^H"][0] == count(2 ** entropy["entropy_bits"])
    assert rows["Jaccard, layers of one router"][:2] == (
        percent(overlap["jaccard_means"]["within_blocks"]),
        f"{percent(overlap['jaccard_null_loads_means']['within_blocks'])} by chance",
    )
    scope = consistency["engagement"]["all_layers"]
    assert rows["Tokens that keep an index 4 layers"][:2] == (
        percent(scope["observed"]["token_share"][3]),
        f"{percent(scope['null_loads']['token_share'][3])} by chance",
    )
    nulls = consistency["information"]["adjacent_bits_null_highest"]
    assert rows["Information of neighbouring layers, bits"][1] == f"{bits(sum(nulls) / 4)} at most in 19 permutations"
    total = sections["perplexity"]["total"]
    assert rows["Perplexity"][0] == ratio(total["perplexity"])
    assert rows["Perplexity"][1:] == ("over 4 documents", 296)
    one = sections["perturbation"]["perturbed"][0]
    assert rows["Perplexity, permutation per layer"][0] == ratio(one["perplexity"])
    assert rows["Perplexity, permutation per layer"][1].startswith(f"{one['rise_percent']:+,.1f}% (")


def test_intervals_hold_their_figures_and_stand_in_the_form_of_these(make_report) -> None:
    sections = make_report()["sections"]
    rows = {row.name: row for row in summary_rows(sections)}
    ends = sections["intervals"]["ends"]
    low, high = ends["concentration.whole.entropy.entropy_bits"]
    assert rows["Path entropy H, bits"].interval == f"{bits(low)} to {bits(high)}"
    assert rows["Effective paths, 2^H"].interval == f"{count(2**low)} to {count(2**high)}"
    low, high = ends["consistency.engagement.all_layers.observed.token_share.3"]
    assert rows["Tokens that keep an index 4 layers"].context.startswith(f"{percent(low)} to {percent(high)}; ")
    low, high = sections["perplexity"]["total"]["perplexity_interval"]
    assert rows["Perplexity"].interval == f"{ratio(low)} to {ratio(high)}"
    without = [row.name for row in rows.values() if not row.interval]
    assert without == [
        "H of unlimited data, bits", "H of independent layers, bits", "Dead experts a layer",
        "Classes told by paths, above chance",
        "Perplexity, permutation per layer", "Perplexity, permutation per router block", "Perplexity, logit noise 0.5",
    ]  # fmt: skip
    del sections["intervals"]
    assert [row.name for row in summary_rows(sections) if row.interval] == ["Perplexity", "Bits per byte"]


def test_companions_lead_between_independent_routers_and_indices_are_called_names(make_report) -> None:
    names = list(named(make_report(router_of_layer=(0, 1, 2, 3, 4))["sections"]))
    assert names.index("Agreement after matching experts") < names.index("Same index in neighbouring layers")
    assert "Jaccard, layers of one router" not in names
    rows = named(make_report(router_of_layer=(0, 1, 2, 3, 4))["sections"])
    of_names = [name for name, (_, beside, _) in rows.items() if "a matter of naming here" in beside]
    assert of_names == [
        "Same index in neighbouring layers", "Jaccard, neighbouring layers", "Jaccard, layers of different routers",
        "Tokens that keep an index 4 layers",
    ]  # fmt: skip
    names = list(named(make_report()["sections"]))
    assert names.index("Same index in neighbouring layers") < names.index("Agreement after matching experts")


def test_only_sections_that_are_there_have_rows(make_report, study_sections) -> None:
    sections = make_report()["sections"] | study_sections()
    assert summary_rows({}) == []
    assert list(rows_by_section({"flow": [], "load": sections["load"]})) == ["load"]
    # Sketches are left out beside exact counts, and geometry is of another command.
    others = ("sketch", "geometry", "geometry_interventions")
    assert list(rows_by_section(sections)) == [name for name in SUMMARY_OF_SECTION if name not in others]


def test_sketched_paths_stand_with_their_standard_errors_unless_exact_ones_are_there(make_report) -> None:
    exact, sections = make_report()["sections"], make_report(sketch=True)["sections"]
    assert "Classes told by paths, above chance" not in named(sections)
    # so few paths are counted exactly in a sketch, too
    wanted = named({"concentration": exact["concentration"]})
    del wanted["H of unlimited data, bits"]
    found = named({"sketch": sections["sketch"]})
    assert {name: row[0] for name, row in found.items()} == {name: row[0] for name, row in wanted.items()}
    assert found["Distinct paths"][1:] == ("at most 300; standard error 0", 300)
    assert found["Path entropy H, bits"][1].endswith("; standard error 0")
    assert rows_by_section(exact | {"sketch": sections["sketch"]}) == rows_by_section(exact)


def test_what_is_not_defined_is_said(make_report) -> None:
    sections = make_report(router_of_layer=(0, 0))["sections"]
    assert "Tokens that keep an index 4 layers" not in named(sections)
    total = sections["perplexity"]["total"] | {"perplexity_interval": None}
    rows = summary_rows({"perplexity": sections["perplexity"] | {"total": total}})
    assert (rows[0].interval, rows[0].context) == ("", "over 4 documents")
    scores = sections["router_scores"] | {"mean_margin_logits": None}
    assert "Margin of the last choice, logits" not in named({"router_scores": scores})
    one = sections["perturbation"]["perturbed"][0]
    for changed, beside in (
        ({"rise_percent": None, "perplexity": None}, "beyond all bounds"),
        ({"rise_percent": 12.34, "rise_percent_interval": None}, "+12.3%"),
    ):
        perturbation = sections["perturbation"] | {"perturbed": [one | changed]}
        assert named({"perturbation": perturbation})["Perplexity, permutation per layer"][1] == beside


def test_nulls_of_many_experts_are_those_that_are_there(make_report) -> None:
    consistency = make_report()["sections"]["consistency"]
    overlap = consistency["overlap"] | {"jaccard_null_loads_means": None}
    rows = named({"consistency": consistency | {"overlap": overlap}})
    chance = percent(overlap["jaccard_null_loads_ratio_means"]["adjacent"])
    assert rows["Jaccard, neighbouring layers"][1] == f"{chance} by chance"


@pytest.mark.parametrize(
    ("setting", "listed", "name"),
    [(0.5, None, "x 0.5"), (10, 0.9, "x 10"), (None, 1.0, "x, all"), (None, None, "x")],
)
def test_interventions_are_named_with_their_setting(setting: float | None, listed: float | None, name: str) -> None:
    assert perturbed_name({"intervention": "x", "setting": setting, "listed_share": listed}) == name


def test_mean() -> None:
    assert mean([1.0, 2.0, 6.0]) == 3.0
