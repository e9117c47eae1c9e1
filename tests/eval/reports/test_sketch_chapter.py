"""The chapter on sketched paths: its tables hold the section's numbers, and its notes say what is left out."""

from pathmoe_eval.reports.number_format import bits, count
from pathmoe_eval.reports.page import Panel, Table
from pathmoe_eval.reports.sketch_chapter import sketch_chapter


def test_estimates_stand_with_their_standard_errors(make_report) -> None:
    section = make_report(sketch=True)["sections"]["sketch"]
    whole = section["whole"]["entropy"] | {
        "entropy_standard_error_bits": 0.00123, "num_paths_standard_error": 1234.4, "missed_share": 0.0012,
        "share_standard_error": [0.0021] * len(section["whole"]["entropy"]["share"]),
    }  # fmt: skip
    section["whole"]["entropy"] = whole
    chapter = sketch_chapter(section)
    assert "Up to 0.12% of the tokens" in chapter.notes[0]
    assert "classes and tokens of paths, paths of top-k sets" in chapter.notes[1]
    figure, coverage, parts = chapter.parts
    assert isinstance(figure, Panel) and isinstance(coverage, Table) and isinstance(parts, Table)
    assert list(figure.figure.data[0].y) == whole["rank_frequency"]["count"]
    assert [row[0] for row in coverage.rows] == [count(paths) for paths in whole["top_paths"]]
    assert {row[2] for row in coverage.rows} == {"0.21%"}
    assert [row[0] for row in parts.rows] == ["layers 0 to 4", "layers 0 to 1", "layers 2 to 4"]
    assert parts.rows[0] == [
        "layers 0 to 4", bits(whole["entropy_bits"]), "0.0012", bits(section["whole"]["ceiling_bits"]),
        bits(section["whole"]["entropy_bits_null"]), bits(section["whole"]["total_correlation_corrected_bits"]),
        count(whole["num_paths"]), "1,234", "300",
    ]  # fmt: skip
    assert all(len(row) == len(parts.head) for row in parts.rows)


def test_exact_ones_say_so(make_report) -> None:
    chapter = sketch_chapter(make_report(sketch=True)["sections"]["sketch"])
    assert chapter.notes[0].endswith("exact where these are 0.")
