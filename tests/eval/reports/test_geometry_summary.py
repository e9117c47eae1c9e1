"""The summary of a report on geometry: figures of real sections, and what is left out where a router has none."""

import statistics
from pathlib import Path

from pathmoe_eval.geometry.model_means import model_means
from pathmoe_eval.reports.geometry_summary import geometry_rows
from pathmoe_eval.reports.number_format import percent, ratio
from pathmoe_eval.reports.summary import rows_by_section
from tests.eval.conftest import BuildMoE
from tests.eval.geometry.test_analysis import section_of


def test_a_shared_router_has_all_rows(build_moe: BuildMoE, tmp_path: Path) -> None:
    _, section = section_of("path_b4", build_moe, tmp_path / "states")
    rows = {row.name: row for row in geometry_rows(section, {})}
    assert len(rows) == 15 and {row.num_tokens for row in rows.values()} == {103}
    steps = model_means(section)["steps"]
    agreement = rows["Agreement within blocks, predicted"]
    assert agreement.value == percent(steps["predicted_agreement"])
    assert agreement.beside.startswith(f"{percent(steps['agreement'])} measured, ")
    assert rows["Pairs beyond Proposition 1"].value == "0"
    cut = [layer["truncation"] for layer in section["layers"]]
    place = cut[0]["kept"].index(16)
    kept = rows["First expert kept by 16 directions of states"]
    assert kept.value == percent(statistics.fmean(one["agreement"][place][0] for one in cut))
    of_domain = [layer["sequences"]["within"]["usage_cosine"]["value"] for layer in section["layers"]]
    assert rows["Usage of experts alike, texts of a domain"].value == ratio(statistics.fmean(of_domain))
    assert rows_by_section({"geometry": section})["geometry"] == list(rows.values())


def test_texts_by_several_authors_have_a_row(build_moe: BuildMoE, tmp_path: Path) -> None:
    _, section = section_of("indep", build_moe, tmp_path / "states")
    values = {"same": {"same": 0.9, "different": 0.5}, "different": {"same": 0.4, "different": 0.3}}
    for place, layer in enumerate(section["layers"]):
        layer["trajectories"] = {
            f"{problem} problem, {author} author": {"value": value + 0.01 * (place % 3 - 1), "interval": None}
            for problem, by_author in values.items()
            for author, value in by_author.items()
        }
    (row,) = [row for row in geometry_rows(section, {}) if "one problem" in row.name]
    assert row.value == "50.0%"
    assert row.beside == "90.0% of one author, of different problems 40.0% and, of different authors, 30.0%"


def test_routers_without_a_matrix_have_fewer(build_moe: BuildMoE, tmp_path: Path) -> None:
    _, section = section_of("recurrent", build_moe, tmp_path / "states", router_dim=7)
    names = [row.name for row in geometry_rows(section, {})]
    assert "Common experts told by the row space" in names and "Alignment of routers" not in names
    assert not [row for row in geometry_rows(section, {}) if "\N{EN DASH}" in row.value]
