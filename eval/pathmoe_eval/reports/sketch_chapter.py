"""The chapter of a report on paths that were counted in fixed memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathmoe_eval.reports.number_format import bits, count, layers, percent
from pathmoe_eval.reports.page import Chapter, Panel, Table
from pathmoe_eval.reports.path_figures import zipf_figure

Section = Mapping[str, Any]


def sketch_chapter(section: Section) -> Chapter:
    """Of `SketchedPaths` as a dict: paths in fixed memory, and what is left out for it."""
    whole = section["whole"]["entropy"]
    missed = (
        f" Up to {whole['missed_share']:.2%} of the tokens came before their path was noticed as a frequent one, which "
        "is a bias that no standard error holds."
        if whole["missed_share"]
        else ""
    )
    return Chapter(
        title="Concentration of paths, in fixed memory",
        notes=[
            "Paths were not counted one by one: entropies and distinct paths are estimates, with standard errors of "
            f"the sampling of paths, and exact where these are 0.{missed}",
            "What needs each path is left out: classes and tokens of paths, paths of top-k sets, entropies with their "
            "bias corrected, entropy over tokens.",
        ],
        parts=[
            Panel(
                title="Frequency over rank, the top-1 paths",
                figure=zipf_figure({"estimated": whole["rank_frequency"]}),
                reading="A straight line is a power law; ranks are exact as far as paths are frequent, and estimated "
                "beyond.",
                num_tokens=whole["num_tokens"],
            ),
            _sketched_coverage_table(whole),
            _sketched_parts_table([section["whole"], *section["blocks"]]),
        ],
    )


def _sketched_coverage_table(whole: Section) -> Table:
    columns = zip(whole["top_paths"], whole["share"], whole["share_standard_error"], strict=True)
    return Table(
        title="Tokens on the most frequent paths",
        head=["most frequent paths", "share of the tokens", "standard error"],
        rows=[[count(paths), percent(share), f"{error:.2%}"] for paths, share, error in columns],
        is_wide=False,
    )


def _sketched_parts_table(parts: Sequence[Section]) -> Table:
    rows = [
        [
            layers(part["first_layer"], part["num_layers"]),
            bits(part["entropy"]["entropy_bits"]),
            f"{part['entropy']['entropy_standard_error_bits']:.2g}",
            bits(part["ceiling_bits"]),
            bits(part["entropy_bits_null"]),
            bits(part["total_correlation_corrected_bits"]),
            count(part["entropy"]["num_paths"]),
            count(part["entropy"]["num_paths_standard_error"]),
            count(part["entropy"]["num_tokens"]),
        ]
        for part in parts
    ]
    error = "standard error"
    return Table(
        title="Paths through all layers and through blocks of them",
        head=[
            "layers",
            "H, bits",
            error,
            "ceiling",
            "independent layers",
            "in common, corrected",
            "distinct paths",
            error,
            "tokens",
        ],
        rows=rows,
        reading="In common (total correlation) is what the layers know of one another, in bits, with the standard "
        "error of H; about 0 for independent layers where tokens are far more than paths. Loads are exact, and so "
        "is the entropy of independent layers.",
    )
