"""Chapters of a report on layers: consistency between them, their load and their routers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathmoe_eval.reports.layer_figures import (
    agreement_figure,
    engagement_figure,
    information_figure,
    information_map,
    jaccard_figure,
    jaccard_ratio_figure,
    matching_figure,
)
from pathmoe_eval.reports.number_format import percent
from pathmoe_eval.reports.page import Chapter, Panel
from pathmoe_eval.reports.router_figures import busiest_figure, load_figure, margin_figure, router_entropy_figure

Section = Mapping[str, Any]


def consistency_chapters(section: Section, router_of_layer: Sequence[int]) -> list[Chapter]:
    """Companions and index figures of `Consistency` as a dict; first what leads, with the reason."""
    companions, indices = _companions(section, router_of_layer), _indices(section, router_of_layer)
    if section["leads_with"] == "companions":
        naming = "Between independent routers these compare names: chance decides which experts share an index."
        return [
            Chapter(title="Consistency across layers", notes=[section["why"]], parts=companions),
            Chapter(title="Index figures", notes=[naming], parts=indices),
        ]
    return [
        Chapter(title="Consistency across layers", notes=[section["why"]], parts=indices),
        Chapter(
            title="Companions that do not depend on names",
            notes=["No relabelling of a layer's experts changes these, so they compare models of any sharing."],
            parts=companions,
        ),
    ]


def _companions(section: Section, router_of_layer: Sequence[int]) -> list[Panel]:
    information, matching, tokens = section["information"], section["matching"], section["num_tokens"]
    panels = [
        Panel(
            title="Information that neighbouring layers share",
            figure=information_figure(information),
            reading="Bits that a token's expert in one layer tells of its expert in the next, bias-corrected; 0 for "
            f"independent layers. Chance is the highest of {information['num_permutations']} permutations of the "
            "tokens, not corrected.",
            num_tokens=tokens,
        ),
        Panel(
            title="Agreement after the best matching of experts",
            figure=matching_figure(matching),
            reading="Share of tokens whose experts in the two layers are matched with each other, one to one, so that "
            "the share is highest. Chance is the same for permuted tokens, each with a matching of its own.",
            num_tokens=tokens,
        ),
    ]
    if information["corrected_bits"] is not None:
        panels.append(
            Panel(
                title="Information of all pairs of layers",
                figure=information_map(information, router_of_layer),
                reading="Bits, bias-corrected; 0 by chance. The diagonal is left out; grey lines part the routers.",
                num_tokens=tokens,
            )
        )
    return panels


def _indices(section: Section, router_of_layer: Sequence[int]) -> list[Panel]:
    overlap, tokens = section["overlap"], section["num_tokens"]
    uniform = f"{overlap['jaccard_null_uniform']:.3f} ({overlap['jaccard_null_uniform_ratio']:.3f} as a ratio of means)"
    return [
        Panel(
            title="Same index in neighbouring layers",
            figure=agreement_figure(section["agreement"]),
            reading="Share of tokens whose top-1 experts have the same index in both layers; chance is that of "
            "independent layers with the same loads.",
            num_tokens=tokens,
        ),
        Panel(
            title="Sustained engagement",
            figure=engagement_figure(section["engagement"]["all_layers"]),
            reading="Share of tokens that keep one top-1 index for at least that many consecutive layers, on a "
            "logarithmic axis; lengths that no token reaches have no point.",
            num_tokens=tokens,
        ),
        Panel(
            title=f"Jaccard of pairs of layers (uniform chance {overlap['jaccard_null_uniform']:.3f})",
            figure=jaccard_figure(overlap, router_of_layer),
            reading="Mean overlap of a token's top-k sets, intersection over union. Two independent uniform sets have "
            f"{uniform}. The diagonal is left out; grey lines part the routers.",
            num_tokens=tokens,
        ),
        Panel(
            title="Jaccard over chance",
            figure=jaccard_ratio_figure(overlap, router_of_layer),
            reading="The same divided by what independent layers with the same loads give: 1 is chance.",
            num_tokens=tokens,
        ),
    ]


def load_chapter(section: Section, router_of_layer: Sequence[int]) -> Chapter:
    """Of `Load` as a dict, over all picks."""
    balance, tokens = section["all_picks"], section["num_tokens"]
    return Chapter(
        title="Load",
        notes=[],
        parts=[
            Panel(
                title="Load of each expert",
                figure=load_figure(balance, router_of_layer),
                reading="Picks of an expert as a multiple of an equal share: 1 is balanced, 0 an expert that no token "
                "picked.",
                num_tokens=tokens,
            ),
            Panel(
                title="Busiest expert of each layer",
                figure=busiest_figure(balance),
                reading="Its picks over the mean. With equal experts the busiest would still be ahead by luck, by the "
                "dotted line.",
                num_tokens=tokens,
            ),
        ],
    )


def router_chapter(section: Section) -> Chapter:
    """Of `RouterScores` as a dict."""
    tokens = section["num_tokens"]
    parts = [
        Panel(
            title="Entropy of the router's scores",
            figure=router_entropy_figure(section),
            reading="Mean over tokens; equal scores have the dotted line, a router that is sure has 0. The highest "
            f"score is {percent(section['mean_confidence'])} on average, "
            f"{percent(section['confidence_null'])} if equal.",
            num_tokens=tokens,
        )
    ]
    margin = margin_figure(section)
    if margin is not None:
        parts.append(
            Panel(
                title="Margin of the last choice",
                figure=margin,
                reading="Logit of the last chosen expert minus that of the first not chosen. Where it is small, little "
                "noise changes the choice; 0 is a tie.",
                num_tokens=tokens,
            )
        )
    how = _KNOWN_FROM.get(section.get("score_function_from", "assumed"), "as the trace says")
    note = f"Scores are the {section['score_function']} of the logits, {how}."
    return Chapter(title="Routers", notes=[note], parts=parts)


_KNOWN_FROM = {
    "config": "as the model's configuration says",
    "weights": "as the ratios of the experts' weights show",
    "assumed": "which is assumed: nothing that was recorded tells",
}
