"""Chapters on what experts are used for hold the numbers of their sections."""

from pathmoe_eval.reports.number_format import count, percent, ratio
from pathmoe_eval.reports.specialisation_chapters import (
    coactivation_chapter,
    domains_chapter,
    saturation_chapter,
    vocabulary_chapter,
)


def test_coactivation_lists_the_strongest_pairs_of_all_layers(make_report) -> None:
    section = make_report()["sections"]["coactivation"]
    panel, table = coactivation_chapter(section).parts
    assert list(panel.figure.data[0].y) == section["strongest_share"]
    assert set(panel.figure.data[1].y) == {section["share_null"]}
    assert "OLMoE's script" not in panel.reading
    pairs = [(layer, pair) for layer, pairs in enumerate(section["top_pairs"]) for pair in pairs]
    layer, best = max(pairs, key=lambda item: item[1]["share"])
    assert table.rows[0] == [
        f"layer {layer}: {best['expert']} with {best['partner']}", percent(best["share"]), ratio(best["lift"]),
        count(best["num_tokens"]),
    ]  # fmt: skip
    shares = [float(row[1].rstrip("%")) for row in table.rows]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 10
    (panel, _) = coactivation_chapter(section | {"olmoe_script": True}).parts
    assert "as OLMoE's script does" in panel.reading


def test_saturation_stands_beside_independent_choices(make_report) -> None:
    section = make_report()["sections"]["saturation"]
    (panel,) = saturation_chapter(section).parts
    observed, null = panel.figure.data
    assert (list(observed.y), list(null.y)) == (section["all_picks"], section["all_picks_null_loads"])
    assert f"it is {percent(section['all_picks_null_uniform'])}." in panel.reading


def test_domains_stand_beside_exchanged_ones(make_report) -> None:
    section = make_report()["sections"]["domains"]
    panel, table = domains_chapter(section).parts
    observed, null = panel.figure.data
    assert (list(observed.y), list(null.y)) == (section["information_bits"], section["information_bits_null"])
    assert table.rows == [["news", "2", "150"], ["code", "2", "150"]]


def test_vocabulary_has_a_row_for_each_kind_of_id_and_layer(make_report) -> None:
    section = make_report(num_tokens=4000)["sections"]["vocabulary"]
    (table,) = vocabulary_chapter(section).parts
    expected = []
    for kind, name in (("input", "the input token"), ("next", "the next token")):
        one = section[kind]
        for place, layer in enumerate(one["layers"]):
            keys = ("macro_share", "macro_share_null", "weighted_share", "weighted_share_null")
            shares = [percent(one[key][place]) for key in keys]
            expected.append(
                [f"{name}, layer {layer}", *shares, count(one["num_ids_in_means"]), count(one["num_tokens"])]
            )
    assert table.rows == expected
    assert len(expected) == 10


def test_vocabulary_of_rare_ids_says_so(make_report) -> None:
    section = {"input": make_report()["sections"]["vocabulary"]["input"] | {"macro_share": None}}
    for found in (section, {}):
        chapter = vocabulary_chapter(found)
        assert chapter.parts == []
        assert chapter.notes == ["No token id occurs often enough."]
