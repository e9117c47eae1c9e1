"""Chapters of a report on changed inputs, rollouts and pruned experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pathmoe_eval.geometry.model_means import over_layers
from pathmoe_eval.reports.figure_style import CHANCE, line_figure, new_figure
from pathmoe_eval.reports.number_format import UNDEFINED, percent, ratio
from pathmoe_eval.reports.page import Cell, Chapter, Panel, Table

Section = Mapping[str, Any]

_LOSSES = {"prompt": "prompts", "own": "its own completions", "other": "the texts' completions"}


def intervention_chapters(section: Section) -> list[Chapter]:
    """Of the section that `measure_interventions` gives."""
    tokens = section["num_sequences"] * section["prompt_tokens"]
    generated = section["num_sequences"] * section["completion_tokens"]
    return [
        Chapter(title="Changed inputs", notes=[], parts=[_inputs_table(section), *_input_panels(section, tokens)]),
        Chapter(title="From prompt into generation", notes=[], parts=_rollout_panels(section["rollouts"], generated)),
        Chapter(title="Pruned experts", notes=[], parts=[_pruning_panel(section["pruning"], tokens)]),
    ]


def _inputs_table(section: Section) -> Table:
    rows: list[list[Cell]] = [
        [
            one["name"],
            percent(over_layers(one["layers"], "confidence")),
            ratio(over_layers(one["layers"], "logit_size")),
            ratio(over_layers(one["layers"], "alignment")),
            percent(over_layers(one["layers"], "state_energy")),
            percent(over_layers(one["layers"], "logit_energy")),
            _cosine(over_layers(one["layers"], "usage_within.value")),
            _cosine(over_layers(one["layers"], "usage_across.value")),
        ]
        for one in section["inputs"]
    ]
    return Table(
        title="",
        head=["input", "confidence", "size of logits", "alignment", "shared direction, states",
              "shared direction, logits", "usage within domains", "usage across domains"],
        rows=rows,
        reading=f"Means over layers, of the first {section['prompt_tokens']} tokens of {section['num_sequences']:,} "
        "documents: as they are (x1), as the last of several copies, shuffled, reversed. Confidence is the highest "
        "softmax of a token's logits; usage is the cosine of visit shares of pairs of sequences.",
    )  # fmt: skip


def _cosine(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def _input_panels(section: Section, tokens: int) -> list[Panel]:
    inputs = {one["name"]: one["layers"] for one in section["inputs"]}
    layers = [layer["layer"] for layer in inputs["x1"]]
    most = [name for name in inputs if name.startswith("x")][-1]
    shown = [name for name in ("x1", most, "shuffled", "reversed") if name in inputs]
    return [
        Panel(
            title="Confidence by layer",
            figure=line_figure(
                layers, {name: [layer["confidence"] for layer in inputs[name]] for name in dict.fromkeys(shown)}, {},
                "MoE layer", "highest softmax",
            ),
            reading="Mean over tokens.",
            num_tokens=tokens,
        ),
        Panel(
            title="Shared direction by layer",
            figure=line_figure(
                layers, {name: [layer["state_energy"] for layer in inputs[name]] for name in dict.fromkeys(shown)}, {},
                "MoE layer", "share of the states' energy",
            ),
            reading="Energy along the first singular direction of the states.",
            num_tokens=tokens,
        ),
    ]  # fmt: skip


def _rollout_panels(rollouts: Section, generated: int) -> list[Panel]:
    figure = new_figure("generated tokens", "cosine of visit shares")
    steps = rollouts["steps"]
    for name, key in (("prompt and generation", "cumulative"), ("generation alone", "generated")):
        figure.add_scatter(x=steps, y=rollouts[key], name=name, mode="lines+markers")
    ends = list(zip(rollouts["generated_quartiles"], rollouts["generated"], strict=True))
    figure.data[-1].error_y = {
        "array": [high - value for (_, high), value in ends],
        "arrayminus": [value - low for (low, _), value in ends],
        "thickness": 1.2,
    }
    figure.add_scatter(x=steps, y=rollouts["prompt_begun"], name="as much of the prompts", mode="lines", line=CHANCE)
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    layers = list(range(len(rollouts["prompt_by_layer"])))
    return [
        Panel(
            title="Usage of pairs over generation",
            figure=figure,
            reading=f"Cosine of the expert usage of pairs of {rollouts['num_rollouts']} rollouts, mean over pairs and "
            "layers; bars are quartiles over pairs. Few tokens scatter, so that any cosine rises with their number.",
            num_tokens=generated,
        ),
        Panel(
            title="Do prompts tell which pairs stay alike?",
            figure=line_figure(
                [str(step) for step in steps],
                {"correlation": rollouts["kept_order"]},
                {"nothing to tell": [0.0] * len(steps)},
                "generated tokens",
                "correlation over pairs",
            ),
            reading="Correlation over pairs of the cosine of their prompts' usage with that of what was generated.",
            num_tokens=generated,
        ),
        Panel(
            title="Usage of pairs by layer",
            figure=line_figure(
                layers,
                {"prompts": rollouts["prompt_by_layer"], "generations": rollouts["last_generated_by_layer"]},
                {},
                "MoE layer",
                "cosine of visit shares",
            ),
            reading="The same of whole prompts and of whole generations.",
            num_tokens=generated,
        ),
    ]


def _pruning_panel(pruning: Sequence[Section], tokens: int) -> Panel:
    figure: go.Figure = line_figure(
        [one["num_layers"] for one in pruning],
        {shown: [one["rise_percent"][name] for one in pruning] for name, shown in _LOSSES.items()},
        {},
        "last layers pruned",
        "rise of the loss, %",
    )
    free = pruning[0]["nats"]
    losses = ", ".join(f"{shown} {free[name]:.3f}" for name, shown in _LOSSES.items())
    return Panel(
        title="Loss of a pruned model",
        figure=figure,
        reading=f"Each pruned layer keeps the {pruning[0]['num_kept']} experts that prompts of other documents use "
        "most. Without pruning, "
        f"nats a token: {losses}.",
        num_tokens=tokens,
    )
