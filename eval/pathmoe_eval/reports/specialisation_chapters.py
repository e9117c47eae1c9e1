"""Chapters of a report on what experts are used for: together, over training, by domain, by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathmoe_eval.reports.number_format import count, percent, ratio
from pathmoe_eval.reports.page import Chapter, Panel, Table
from pathmoe_eval.reports.router_figures import bits_figure, share_figure

Section = Mapping[str, Any]

_IDS = {"input": "the input token", "next": "the next token", "predicted": "the predicted token"}


def coactivation_chapter(section: Section) -> Chapter:
    """Of `Coactivation` as a dict."""
    tokens = section["num_tokens"]
    of_script = " Only neighbouring ranks are counted, as OLMoE's script does." if section["olmoe_script"] else ""
    pairs = sorted(
        ((layer, pair) for layer, pairs in enumerate(section["top_pairs"]) for pair in pairs),
        key=lambda item: -item[1]["share"],
    )
    rows = [
        [
            f"layer {layer}: {pair['expert']} with {pair['partner']}",
            percent(pair["share"]),
            ratio(pair["lift"]),
            count(pair["num_tokens"]),
        ]
        for layer, pair in pairs[:10]
    ]
    return Chapter(
        title="Experts picked together",
        notes=[],
        parts=[
            Panel(
                title="Strongest partner",
                figure=share_figure(section["strongest_share"], section["share_null"], "share of an expert's tokens"),
                reading="Share of an expert's tokens that also pick its most frequent partner, mean over experts; "
                f"chance is that of any one partner if all sets were equally likely.{of_script}",
                num_tokens=tokens,
            ),
            Table(
                title="Strongest pairs",
                head=["experts", "share", "times chance", "tokens"],
                rows=rows,
                reading="Share of the first expert's tokens that pick the second, too, and how many times more often "
                f"than all tokens do; {ratio(section['lift_null'])} times if all sets were equally likely.",
                is_wide=False,
            ),
        ],
    )


def saturation_chapter(section: Section) -> Chapter:
    """Of `Saturation` as a dict."""
    return Chapter(
        title="Saturation",
        notes=[],
        parts=[
            Panel(
                title="Picks shared with the later checkpoint",
                figure=share_figure(section["all_picks"], section["all_picks_null_loads"], "share of the picks"),
                reading="Chance is of independent choices with each checkpoint's own loads; with equal loads it is "
                f"{percent(section['all_picks_null_uniform'])}.",
                num_tokens=section["num_tokens"],
            )
        ],
    )


def domains_chapter(section: Section) -> Chapter:
    """Of `DomainSpecialisation` as a dict."""
    tokens, documents = section["num_tokens"], section["num_documents"]
    grouped = "" if section["num_groups"] == documents else f" in {section['num_groups']:,} groups"
    rows = [
        [domain["domain"], count(domain["num_documents"]), count(domain["num_tokens"])] for domain in section["domains"]
    ]
    return Chapter(
        title="Domains",
        notes=[],
        parts=[
            Panel(
                title="What an expert tells of the domain",
                figure=bits_figure(section["information_bits"], section["information_bits_null"]),
                reading="Mutual information of a pick's domain and its expert, in bits; chance is the mean when "
                f"{documents:,} documents{grouped} exchange their domains.",
                num_tokens=tokens,
            ),
            Table(title="Domains", head=["domain", "documents", "tokens"], rows=rows, is_wide=False),
        ],
    )


def vocabulary_chapter(section: Mapping[str, Section]) -> Chapter:
    """Of `VocabularySpecialisation` as a dict, for each kind of token id."""
    rows = [
        [
            f"{_IDS[kind]}, layer {layer}",
            percent(share),
            percent(null),
            percent(weighted),
            percent(weighted_null),
            count(one["num_ids_in_means"]),
            count(one["num_tokens"]),
        ]
        for kind, one in section.items()
        if one["macro_share"] is not None
        for layer, share, null, weighted, weighted_null in zip(
            one["layers"],
            one["macro_share"],
            one["macro_share_null"],
            one["weighted_share"],
            one["weighted_share_null"],
            strict=True,
        )
    ]
    if not rows:
        return Chapter(title="Vocabulary", notes=["No token id occurs often enough."], parts=[])
    table = Table(
        title="How much a token decides its expert",
        head=["", "mean over ids", "shuffled", "mean over tokens", "shuffled", "ids", "tokens"],
        rows=rows,
        reading="Share of an id's occurrences on its most frequent expert, over ids that occur often enough. Rare ids "
        "have a high share by construction: read it beside that of the same ids in random order.",
    )
    return Chapter(title="Vocabulary", notes=[], parts=[table])
