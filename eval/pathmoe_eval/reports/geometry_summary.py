"""The figures of the geometry of routers, and of interventions, that a reader looks for first: means over layers."""

from __future__ import annotations

from collections.abc import Sequence

from pathmoe_eval.geometry.model_means import model_means, over_layers
from pathmoe_eval.reports.number_format import count, percent, ratio
from pathmoe_eval.reports.summary_row import Ends, Section, SummaryRow

_FEW_DIRECTIONS = 16
_OF_SEQUENCES = (
    ("Mean states alike", ratio, "pooled_full"),
    ("Mean states alike in the row space", ratio, "pooled_row"),
    ("Usage of experts alike", ratio, "usage_cosine"),
    ("Experts of 0.8 of the visits in common", percent, "top_p_jaccard"),
    ("Experts of any two tokens in common", percent, "mask_overlap"),
)


def geometry_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of the section that `analyse_geometry` gives; what no layer has is left out."""
    means = {name: value for group in model_means(section).values() for name, value in group.items()}
    shown = {name: percent(value) for name, value in means.items()}
    rows = {
        "shared_logit_energy": (
            "Shared direction in logits", shown["shared_logit_energy"], f"{shown['shared_state_energy']} in states",
        ),
        "mean_logit_energy": (
            "Mean state in logits", shown["mean_logit_energy"], f"{shown['mean_state_energy']} in states",
        ),
        "alignment": ("Alignment of routers", ratio(means["alignment"]), "1 of random routers"),
        "violations": (
            "Pairs beyond Proposition 1", count(means["violations"]), f"median at {shown['tightness']} of the bound",
        ),
        "explained_row": (
            "Common experts told by the row space",
            shown["explained_row"],
            f"{shown['explained_null']} by the null space, {shown['explained_full']} by whole states, "
            f"{shown['explained_logits']} by logits",
        ),
        "overlap_same_token": (
            "Common experts of the same token",
            shown["overlap_same_token"],
            f"{shown['overlap_any']} of any two tokens",
        ),
        "expert_control": (
            "Expert read off the row space",
            shown["expert_control"],
            f"{shown['expert_random']} off random directions, {shown['expert_most_frequent']} always the most frequent",
        ),
        "token_content": (
            "Token read off the null space", shown["token_content"], f"{shown['token_control']} off the row space",
        ),
        "predicted_agreement": (
            "Agreement within blocks, predicted",
            shown["predicted_agreement"],
            f"{shown['agreement']} measured, {shown['agreement_null']} by chance",
        ),
    }  # fmt: skip
    tokens = section["num_tokens"]
    found = [SummaryRow(*row, tokens) for name, row in rows.items() if means[name] is not None]
    layers = section["layers"]
    return [*found, *_truncation_rows(layers, tokens), *_sequence_rows(layers, tokens), *_text_rows(layers, tokens)]


def _truncation_rows(layers: Sequence[Section], tokens: int) -> list[SummaryRow]:
    kept: Sequence[int] = next((one["truncation"]["kept"] for one in layers if "truncation" in one), [])
    few = [place for place, directions in enumerate(kept) if directions <= _FEW_DIRECTIONS][-1:]
    return [
        SummaryRow(
            f"First expert kept by {kept[place]} directions of states",
            percent(over_layers(layers, f"truncation.agreement.{place}.0")),
            f"{percent(over_layers(layers, 'truncation.agreement_null.0'))} always the most frequent",
            tokens,
        )
        for place in few
    ]


def _sequence_rows(layers: Sequence[Section], tokens: int) -> list[SummaryRow]:
    rows = []
    for name, form, measure in _OF_SEQUENCES:
        within, across = (over_layers(layers, f"sequences.{where}.{measure}.value") for where in ("within", "across"))
        if within is not None:
            beside = "" if across is None else f"{form(across)} across domains"
            rows.append(SummaryRow(f"{name}, texts of a domain", form(within), beside, tokens))
    return rows


def _text_rows(layers: Sequence[Section], tokens: int) -> list[SummaryRow]:
    """Of texts by several authors on several problems."""
    value = {
        (problem, author): over_layers(layers, f"trajectories.{problem} problem, {author} author.value")
        for problem in ("same", "different")
        for author in ("same", "different")
    }
    if value["same", "different"] is None:
        return []
    beside = (
        f"{percent(value['same', 'same'])} of one author, of different problems {percent(value['different', 'same'])} "
        f"and, of different authors, {percent(value['different', 'different'])}"
    )
    name = "Experts of 0.8 of the visits, one problem, different authors"
    return [SummaryRow(name, percent(value["same", "different"]), beside, tokens)]


def intervention_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of the section that `measure_interventions` gives."""
    inputs = {one["name"]: one["layers"] for one in section["inputs"]}
    repeated = [name for name in inputs if name.startswith("x")][-1]
    tokens = section["num_sequences"] * section["prompt_tokens"]
    rows = []
    for name, form, figure in (
        ("Confidence", percent, "confidence"), ("Alignment", ratio, "alignment"),
        ("Shared direction in states", percent, "state_energy"),
    ):  # fmt: skip
        values = {kind: form(over_layers(layers, figure)) for kind, layers in inputs.items()}
        beside = f"{values['shuffled']} shuffled, {values['reversed']} reversed, {values[repeated]} of {repeated}"
        rows.append(SummaryRow(f"{name}, inputs as they are", values["x1"], beside, tokens))
    for where in ("within", "across"):
        once, often = (over_layers(inputs[kind], f"usage_{where}.value") for kind in ("x1", repeated))
        if often is not None:
            name = f"Usage {where} domains, inputs {repeated}"
            rows.append(SummaryRow(name, ratio(often), f"{ratio(once)} of inputs once", tokens))
    rollouts = section["rollouts"]
    generated = section["num_sequences"] * section["completion_tokens"]
    rows.append(
        SummaryRow(
            f"Usage of pairs over {rollouts['steps'][-1]} generated tokens",
            ratio(rollouts["generated"][-1]),
            f"{ratio(rollouts['cumulative'][-1])} with their prompts, {ratio(rollouts['prompt'])} of prompts alone; "
            f"correlation of the two {ratio(rollouts['kept_order'][-1])}",
            generated,
        )
    )
    return [*rows, *_pruning_rows(section["pruning"], tokens)]


def _pruning_rows(pruning: Sequence[Section], tokens: int) -> list[SummaryRow]:
    rows = []
    for one in pruning[1:]:
        rises = {name: f"{rise:+.1f}%" for name, rise in one["rise_percent"].items()}
        rows.append(
            SummaryRow(
                f"Loss on prompts, last {one['num_layers']} pruned to {one['num_kept']} experts",
                rises["prompt"],
                f"{rises['own']} on its own completions, {rises['other']} on the texts'",
                tokens,
            )
        )
    return rows
