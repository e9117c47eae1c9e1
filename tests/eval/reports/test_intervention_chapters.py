"""Chapters of interventions hold the numbers of their section."""

import json
import statistics
from typing import Any

import pytest

from pathmoe_eval.geometry.interventions import InterventionOptions, measure_interventions
from pathmoe_eval.geometry.router_map import router_maps
from pathmoe_eval.reports.geometry_summary import intervention_rows
from pathmoe_eval.reports.intervention_chapters import intervention_chapters
from pathmoe_eval.reports.page import Panel, Table
from tests.eval.conftest import BuildMoE
from tests.eval.geometry.test_state_files import documents_of


@pytest.fixture(scope="module")
def section(build_moe: BuildMoE) -> dict[str, Any]:
    model = build_moe("path_b4")
    options = InterventionOptions(interventions=True, prompt_tokens=6, completion_tokens=5, kept_share=0.5)
    found = measure_interventions(
        model, documents_of([14, 11, 30]), router_maps(model), [0, 4], options, context_length=20, seed=0
    )
    return dict(json.loads(json.dumps(found)))


def test_inputs_are_rows_of_means_over_layers(section: dict[str, Any]) -> None:
    table = intervention_chapters(section)[0].parts[0]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["x1", "x2", "x3", "shuffled", "reversed"]
    mean = statistics.fmean(layer["confidence"] for layer in section["inputs"][1]["layers"])
    assert table.rows[1][1] == f"{100 * mean:.1f}%"
    assert "first 6 tokens of 3 documents" in table.reading


def test_the_summary_has_them_side_by_side(section: dict[str, Any]) -> None:
    rows = {row.name: row for row in intervention_rows(section, {})}
    mean = statistics.fmean(layer["confidence"] for layer in section["inputs"][0]["layers"])
    assert rows["Confidence, inputs as they are"].value == f"{100 * mean:.1f}%"
    assert "Usage across domains, inputs x3" in rows and "Usage of pairs over 5 generated tokens" in rows
    last = section["pruning"][-1]
    pruned = rows[f"Loss on prompts, last {last['num_layers']} pruned to 3 experts"]
    assert pruned.value == f"{last['rise_percent']['prompt']:+.1f}%"
    assert pruned.beside.startswith(f"{last['rise_percent']['own']:+.1f}% on its own completions")


def test_lines_are_those_of_the_section(section: dict[str, Any]) -> None:
    panels = [part for chapter in intervention_chapters(section) for part in chapter.parts if isinstance(part, Panel)]
    assert [panel.title for panel in panels] == [
        "Confidence by layer", "Shared direction by layer", "Usage of pairs over generation",
        "Do prompts tell which pairs stay alike?", "Usage of pairs by layer", "Loss of a pruned model",
    ]  # fmt: skip
    confidence, _, usage, _, _, pruned = (
        {trace.name: list(trace.y) for trace in panel.figure.data} for panel in panels
    )
    assert list(confidence) == ["x1", "x3", "shuffled", "reversed"]
    assert confidence["x3"] == [layer["confidence"] for layer in section["inputs"][2]["layers"]]
    assert usage["generation alone"] == section["rollouts"]["generated"]
    assert usage["as much of the prompts"] == section["rollouts"]["prompt_begun"]
    assert pruned["prompts"] == [one["rise_percent"]["prompt"] for one in section["pruning"]]
    assert "keeps the 3 experts" in panels[-1].reading
