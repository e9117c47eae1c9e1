"""Chapters of a report on paths: how concentrated they are, how tokens flow, what they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathmoe_eval.reports.flow_figure import flow_picture
from pathmoe_eval.reports.number_format import UNDEFINED, bits, count, layers, percent
from pathmoe_eval.reports.page import Cell, Chapter, Panel, Table, Tokens, Words
from pathmoe_eval.reports.path_figures import coverage_figure, rarefaction_figure, zipf_figure

Section = Mapping[str, Any]

_LISTED_PATHS = 10


def concentration_chapter(section: Section) -> Chapter:
    """Of whole paths, and through blocks of layers."""
    whole = section["whole"]
    parts: list[Panel | Table] = [
        *_concentration_panels(whole, "the top-1 paths"),
        _estimates_table(whole),
        _blocks_table(section["blocks"]),
    ]
    if "sets" in section:
        parts += _concentration_panels(section["sets"], "paths of top-k sets")
    return Chapter(title="Concentration of paths", notes=[whole["in_words"]], parts=parts)


def _concentration_panels(whole: Section, what: str) -> list[Panel | Table]:
    tokens = whole["entropy"]["num_tokens"]
    rank, slope = whole["rank_frequency"], whole["rank_frequency"]["slope"]
    fitted = (
        ""
        if slope is None
        else f" The line is fitted from rank {rank['slope_first_rank']:,} to the last path seen often enough."
    )
    return [
        Panel(
            title=f"Entropy over tokens, {what}",
            figure=rarefaction_figure({"observed": whole["rarefaction"]}),
            reading="Expected entropy of random subsamples of these tokens (exact, none was drawn). No sample exceeds "
            "the ceiling; where the curve runs along it, the entropy tells the size of the sample, not of the model.",
            num_tokens=tokens,
        ),
        Panel(
            title=f"Frequency over rank, {what}",
            figure=zipf_figure({"observed": rank}),
            reading=f"A straight line is a power law; the long flat end are paths that were seen once.{fitted}",
            num_tokens=tokens,
        ),
        Panel(
            title=f"Tokens on the most frequent paths, {what}",
            figure=coverage_figure(whole["coverage"]),
            reading="Beside what the likeliest paths would carry if layers chose independently with the same loads.",
            num_tokens=tokens,
        ),
    ]


def _estimates_table(whole: Section) -> Table:
    estimates, entropy = whole["estimates"], whole["entropy"]
    rows = [
        ["of the sample (plug-in)", bits(estimates["plug_in_bits"])],
        ["Miller and Madow", bits(estimates["miller_madow_bits"])],
        ["Chao and Shen", bits(estimates["chao_shen_bits"])],
        ["Chao, Wang and Jost", bits(estimates["chao_wang_jost_bits"])],
        ["ceiling, log2 of the tokens", bits(entropy["ceiling_bits"])],
    ]
    return Table(
        title="Entropy of whole paths, bits",
        head=["estimate", "bits"],
        rows=rows,
        reading="Where the corrected values differ, the sample does not tell. The chance that the next token takes a "
        f"path already seen (Good-Turing coverage) is {percent(estimates['coverage'])}. "
        f"{entropy['num_tokens']:,} tokens.",
        is_wide=False,
    )


def _blocks_table(blocks: Sequence[Section]) -> Table:
    rows = [
        [
            layers(block["first_layer"], block["num_layers"]),
            bits(block["entropy_bits"]),
            bits(block["ceiling_bits"]),
            bits(block["null_bits"]),
            bits(block["total_correlation_corrected_bits"]),
            count(block["num_paths"]),
            count(block["num_tokens"]),
        ]
        for block in blocks
    ]
    return Table(
        title="Paths through blocks of layers",
        head=["block", "H, bits", "ceiling", "independent layers", "in common, corrected", "distinct paths", "tokens"],
        rows=rows,
        reading="Over few layers the sample is large enough to tell. In common (total correlation) is what the layers "
        "of a block know of one another, in bits; about 0 for independent layers, whatever the experts are called.",
    )


def flow_chapter(counts: Sequence[Sequence[Sequence[int]]], router_of_layer: Sequence[int]) -> Chapter:
    """Of the counts of top-1 transitions, [L - 1][E][E]."""
    picture = flow_picture(counts, router_of_layer)
    num_experts = len(counts[0])
    shares = len(set(router_of_layer)) < len(router_of_layer)
    rows = (
        "Within one colour layers share a router, so that a level ribbon is a token that keeps its expert."
        if shares
        else "Each layer has a router of its own, so that the order of the boxes is a matter of naming."
    )
    return Chapter(
        title="Flow of tokens",
        notes=[],
        parts=[
            Panel(
                title="From layer to layer",
                figure=picture.figure,
                reading=f"A box is an expert, index 0 on top; a ribbon the tokens whose top-1 expert goes from one to "
                f"the other. {rows} Shown are transitions of at least {picture.least_share:.2%} of the tokens, "
                f"{picture.shown_share:.0%} of all; independent layers of equal loads would have "
                f"{1 / num_experts**2:.2%} in each.",
                num_tokens=sum(map(sum, counts[0])),
                is_wide=True,
            )
        ],
    )


def tokens_chapter(path_tokens: Sequence[Section]) -> Chapter:
    """Of the most frequent paths, whole and through blocks of layers, with their tokens."""
    return Chapter(
        title="Most frequent paths and their tokens",
        notes=[
            "Spaces are shown as ␣, other blanks and control characters as escapes. A number in brackets is how often."
        ],
        parts=[_path_table(part) for part in path_tokens],
    )


def _path_table(part: Section) -> Table:
    rows: list[list[Cell]] = [
        [
            _in_groups(path["path"]),
            count(path["num_tokens"]),
            percent(path["share"]),
            count(path["num_distinct_tokens"]),
            Tokens(tuple(f"{token['text']} ({token['num_tokens']:,})" for token in path["tokens"])),
            Words(
                ", ".join(f"{one['name']} {one['num_tokens'] / path['num_tokens']:.0%}" for one in path["classes"][:3])
            ),
            Tokens(tuple(f"{one['before']}⟦{one['token']}⟧{one['after']}" for one in path["contexts"][:4])),
        ]
        for path in part["paths"][:_LISTED_PATHS]
    ]
    return Table(
        title=f"Paths through {layers(part['first_layer'], part['num_layers'])}",
        head=["experts", "tokens", "share", "distinct", "most frequent tokens", "classes", "in context"],
        rows=rows,
    )


def _in_groups(path: Sequence[int]) -> str:
    """Experts in groups of four, between which a line may break."""
    return " ".join("·".join(map(str, path[first : first + 4])) for first in range(0, len(path), 4))


def separation_chapter(section: Section) -> Chapter:
    """Of `PathSeparation` as a dict."""
    parts = {"whole path": section["whole"]["all_paths"]}
    if section["whole"]["frequent_paths"] is not None:
        least = section["min_path_tokens"]
        parts[f"whole path, those of at least {least} tokens"] = section["whole"]["frequent_paths"]
    for block in section["blocks"]:
        parts[layers(block["first_layer"], block["last_layer"] - block["first_layer"] + 1)] = block["all_paths"]
    single = max(section["layers"], key=lambda layer: layer["all_paths"]["normalised_excess"] or 0.0)
    parts[f"best single layer, {single['first_layer']}"] = single["all_paths"]
    if section["token_ids"] is not None:
        parts["token id, no model"] = section["token_ids"]
    rows = [
        [
            name,
            bits(one["mutual_information_bits"]["observed"]),
            bits(one["mutual_information_bits"]["null_mean"]),
            UNDEFINED if one["normalised_excess"] is None else percent(one["normalised_excess"]),
            percent(one["purity"]["observed"]),
            percent(one["purity"]["null_mean"]),
            count(one["num_tokens"]),
        ]
        for name, one in parts.items()
    ]
    return Chapter(
        title="Classes of tokens",
        notes=[],
        parts=[
            Table(
                title="What tells the class of a token",
                head=["", "information, bits", "permuted", "excess", "purity", "permuted", "tokens"],
                rows=rows,
                reading=f"Many paths separate any classes, so read the excess over {section['num_permutations']} "
                "permutations of the classes, as a share of their entropy. Purity is the share of tokens in the most "
                "frequent class of their path.",
            )
        ],
    )
