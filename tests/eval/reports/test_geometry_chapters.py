"""Chapters of geometry: what is there for which router."""

import copy
from typing import Any

from pathmoe_eval.reports.geometry_chapters import geometry_chapters
from pathmoe_eval.reports.number_format import UNDEFINED
from pathmoe_eval.reports.page import Table


def titles(section: dict[str, Any]) -> list[str]:
    return [part.title for chapter in geometry_chapters(section) for part in chapter.parts if part.title]


def test_every_layer_has_a_row(geometry_section: dict[str, Any]) -> None:
    (table,) = geometry_chapters(geometry_section)[0].parts
    assert isinstance(table, Table)
    assert [row[:4] for row in table.rows] == [[str(layer), "linear", "5 of 32", "0"] for layer in range(3)]


def test_all_parts_of_a_linear_router_are_shown(geometry_section: dict[str, Any]) -> None:
    assert len(titles(geometry_section)) == 21
    assert [chapter.title for chapter in geometry_chapters(geometry_section)][-1] == "From layer to layer"


def test_what_a_recurrent_router_lacks_is_left_out(geometry_section: dict[str, Any]) -> None:
    section = copy.deepcopy(geometry_section)
    for layer in section["layers"]:
        for part in ("alignment", "truncation", "probes"):
            del layer[part]
        layer["kind"], layer["token_pairs"]["bound"], layer["token_pairs"]["same_token"] = "recurrent", None, None
        layer["shared_direction"] |= {"logit_energy": None, "mean_logit_energy": None}
    section["drift"] = []
    shown = titles(section)
    assert shown == [
        "What explains common experts", "Logits over states, layer 1", "Common experts over distance, layer 1",
        "Usage of experts by pairs of sequences", "Experts that hold 0.8 of the visits",
        "Experts that two tokens of them have in common", "How alike mean states are",
        "Do mean states tell the cosine of visit shares?", "Do mean states tell which experts hold 0.8 of the visits?",
        "Do mean states tell what tokens have in common?", "Energy along the shared direction",
    ]  # fmt: skip
    (table,) = geometry_chapters(section)[0].parts
    assert isinstance(table, Table) and [cell == UNDEFINED for cell in table.rows[0][3:]] == [
        True, False, True, False, True, False, True,
    ]  # fmt: skip
