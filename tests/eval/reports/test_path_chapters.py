"""Chapters on paths: their tables hold the numbers of their sections, their figures are those of the sections."""

from pathmoe_eval.reports.number_format import UNDEFINED, bits, count, percent
from pathmoe_eval.reports.page import Panel, Table, Tokens, Words
from pathmoe_eval.reports.path_chapters import concentration_chapter, flow_chapter, separation_chapter, tokens_chapter


def tables(chapter) -> dict[str, Table]:
    return {part.title: part for part in chapter.parts if isinstance(part, Table)}


def panels(chapter) -> dict[str, Panel]:
    return {part.title: part for part in chapter.parts if isinstance(part, Panel)}


def test_concentration_has_figures_estimates_and_blocks(make_report) -> None:
    section = make_report()["sections"]["concentration"]
    chapter = concentration_chapter(section)
    assert chapter.notes == [section["whole"]["in_words"]]
    shown = panels(chapter)
    assert len(shown) == 6  # of paths of top-1 experts, and of sets
    assert {panel.num_tokens for panel in shown.values()} == {300}
    for what, of in (("the top-1 paths", section["whole"]), ("paths of top-k sets", section["sets"])):
        curve = shown[f"Entropy over tokens, {what}"].figure.data[0]
        assert list(curve.y) == of["rarefaction"]["entropy_bits"]
    estimates = section["whole"]["estimates"]
    rows = tables(chapter)["Entropy of whole paths, bits"].rows
    keys = ("plug_in_bits", "miller_madow_bits", "chao_shen_bits", "chao_wang_jost_bits")
    assert [row[1] for row in rows[:4]] == [bits(estimates[key]) for key in keys]
    assert rows[4][1] == bits(section["whole"]["entropy"]["ceiling_bits"])
    blocks = tables(chapter)["Paths through blocks of layers"].rows
    assert [row[0] for row in blocks] == ["layers 0 to 1", "layers 2 to 4"]
    for row, block in zip(blocks, section["blocks"], strict=True):
        assert row[1:5] == [
            bits(block[key])
            for key in ("entropy_bits", "ceiling_bits", "entropy_bits_null", "total_correlation_corrected_bits")
        ]
        assert row[5:] == [count(block["num_paths"]), "300"]


def test_concentration_without_sets_has_three_figures(make_report) -> None:
    section = make_report()["sections"]["concentration"]
    del section["sets"]
    assert len(panels(concentration_chapter(section))) == 3


def test_flow_says_what_it_shows(make_report) -> None:
    counts = make_report()["sections"]["flow"]
    shared = panels(flow_chapter(counts, (0, 0, 1, 1, 1)))["From layer to layer"]
    independent = panels(flow_chapter(counts, (0, 1, 2, 3, 4)))["From layer to layer"]
    assert shared.is_wide
    assert shared.num_tokens == 300
    assert sum(shared.figure.data[0].link.value) == 4 * 300
    assert "layers share a router" in shared.reading
    assert "matter of naming" in independent.reading
    for reading in (shared.reading, independent.reading):
        assert "at least 0.01% of the tokens, 100% of all" in reading
        assert f"{1 / 36:.2%} in each" in reading


def test_paths_stand_with_their_tokens_classes_and_contexts(make_report) -> None:
    section = make_report(router_of_layer=(0,) * 5)["sections"]["path_tokens"]
    for part, table in zip(section, tokens_chapter(section).parts, strict=True):
        first, last = part["first_layer"], part["first_layer"] + part["num_layers"] - 1
        assert table.title == f"Paths through layers {first} to {last}"
        assert len(table.rows) == 10
        for row, path in zip(table.rows, part["paths"], strict=False):
            assert row[0].replace(" ", "·").split("·") == [str(expert) for expert in path["path"]]
            assert row[1:4] == [
                str(path["num_tokens"]), percent(path["num_tokens"] / 300), str(path["num_distinct_tokens"]),
            ]  # fmt: skip
            assert row[4] == Tokens(tuple(f"{token['text']} ({token['num_tokens']})" for token in path["tokens"]))
            name = path["classes"][0]["name"]
            assert isinstance(row[5], Words)
            assert row[5].text.startswith(f"{name} {path['classes'][0]['num_tokens'] / path['num_tokens']:.0%}")
            context = path["contexts"][0]
            assert row[6].texts[0] == f"{context['before']}⟦{context['token']}⟧{context['after']}"


def test_separation_puts_the_excess_beside_permutations(make_report) -> None:
    section = make_report()["sections"]["separation"]
    (table,) = separation_chapter(section).parts
    rows = {row[0]: row[1:] for row in table.rows}
    whole = section["whole"]["all_paths"]
    assert rows["whole path"] == [
        bits(whole["mutual_information_bits"]["observed"]), bits(whole["mutual_information_bits"]["null_mean"]),
        percent(whole["normalised_excess"]), percent(whole["purity"]["observed"]),
        percent(whole["purity"]["null_mean"]), "300",
    ]  # fmt: skip
    assert {"layers 0 to 1", "layers 2 to 4", "token id, no model"} < rows.keys()
    excess = [layer["all_paths"]["normalised_excess"] for layer in section["layers"]]
    assert rows[f"best single layer, {excess.index(max(excess))}"][2] == percent(max(excess))


def test_separation_of_one_class_or_without_token_ids(make_report) -> None:
    section = make_report()["sections"]["separation"]
    section["whole"]["all_paths"]["normalised_excess"] = None
    section["whole"]["frequent_paths"] = section["token_ids"] = None
    for layer in section["layers"]:
        layer["all_paths"]["normalised_excess"] = None
    (table,) = separation_chapter(section).parts
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["whole path", "layers 0 to 1", "layers 2 to 4", "best single layer, 0"]
    assert rows["whole path"][2] == UNDEFINED
