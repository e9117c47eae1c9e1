"""Chapters on layers: what leads comes first, and each figure is that of its section."""

import pytest

from pathmoe_eval.reports.layer_chapters import consistency_chapters, load_chapter, router_chapter
from pathmoe_eval.reports.page import Panel

COMPANIONS = [
    "Information that neighbouring layers share",
    "Agreement after the best matching of experts",
    "Information of all pairs of layers",
]


def titles(chapter) -> list[str]:
    return [part.title for part in chapter.parts]


@pytest.mark.parametrize(("routers", "place"), [((0, 0, 1, 1, 1), 1), ((0,) * 5, 1), ((0, 1, 2, 3, 4), 0)])
def test_companions_lead_where_no_neighbours_share_a_router(make_report, routers, place: int) -> None:
    section = make_report(router_of_layer=routers)["sections"]["consistency"]
    chapters = consistency_chapters(section, routers)
    assert titles(chapters[place]) == COMPANIONS
    assert chapters[0].notes == [section["why"]]
    assert ("names: chance decides" in chapters[1].notes[0]) == (place == 0)
    indices = chapters[1 - place].parts
    assert [panel.title for panel in indices] == [
        "Same index in neighbouring layers",
        "Sustained engagement",
        f"Jaccard of pairs of layers (uniform chance {section['overlap']['jaccard_null_uniform']:.3f})",
        "Jaccard over chance",
    ]
    assert list(indices[0].figure.data[0].y) == section["agreement"]["agreement"]
    assert {panel.num_tokens for chapter in chapters for panel in chapter.parts} == {300}


def test_pairs_that_were_not_counted_have_no_map(make_report) -> None:
    section = make_report()["sections"]["consistency"]
    section["information"]["corrected_bits"] = None
    assert titles(consistency_chapters(section, (0, 0, 1, 1, 1))[1]) == COMPANIONS[:2]


def test_load_is_of_all_picks(make_report) -> None:
    section = make_report()["sections"]["load"]
    chapter = load_chapter(section, (0, 0, 1, 1, 1))
    assert titles(chapter) == ["Load of each expert", "Busiest expert of each layer"]
    assert list(chapter.parts[1].figure.data[0].y) == section["all_picks"]["max_over_mean"]


def test_routers_without_a_margin_have_no_figure_of_it(make_report) -> None:
    section = make_report()["sections"]["router_scores"]
    chapter = router_chapter(section)
    assert titles(chapter) == ["Entropy of the router's scores", "Margin of the last choice"]
    assert all(isinstance(part, Panel) and part.num_tokens == 300 for part in chapter.parts)
    section["margin_logits_quantiles"] = None
    assert titles(router_chapter(section)) == ["Entropy of the router's scores"]


@pytest.mark.parametrize(
    ("how", "note"),
    [
        ("config", "Scores are the sigmoid of the logits, as the model's configuration says."),
        ("weights", "Scores are the sigmoid of the logits, as the ratios of the experts' weights show."),
        ("trace", "Scores are the sigmoid of the logits, as the trace says."),
        ("assumed", "Scores are the sigmoid of the logits, which is assumed: nothing that was recorded tells."),
    ],
)
def test_routers_say_how_the_score_function_is_known(make_report, how: str, note: str) -> None:
    section = make_report()["sections"]["router_scores"]
    assert router_chapter(section | {"score_function": "sigmoid", "score_function_from": how}).notes == [note]
