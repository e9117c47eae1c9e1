"""The figures that a reader looks for first, each with what chance gives or what bounds it, and with its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pathmoe_eval.reports.geometry_summary import geometry_rows, intervention_rows
from pathmoe_eval.reports.locality_summary import LOCALITY_ROWS
from pathmoe_eval.reports.number_format import bits, count, percent, ratio, standard_error
from pathmoe_eval.reports.summary_row import Ends, Section, SummaryRow, between, mean

SUSTAINED = 4
"""Layers from which on PathMoE (arXiv 2603.18297) calls engagement sustained."""


def summary_rows(sections: Mapping[str, Any]) -> list[SummaryRow]:
    """Rows of all sections that are there, in the order of a report."""
    return [row for rows in rows_by_section(sections).values() for row in rows]


def rows_by_section(sections: Mapping[str, Any]) -> dict[str, list[SummaryRow]]:
    """Rows of each section that is there; a sketch of paths has none beside exact counts."""
    ends = interval_ends(sections)
    names = [name for name in SUMMARY_OF_SECTION if name in sections]
    if "concentration" in names and "sketch" in names:
        names.remove("sketch")
    return {name: SUMMARY_OF_SECTION[name](sections[name], ends) for name in names}


def interval_ends(sections: Mapping[str, Any]) -> Ends:
    """Those of the section `intervals`; none without it."""
    return sections["intervals"]["ends"] if "intervals" in sections else {}


def perplexity_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of `PerplexityResult` as a dict."""
    total = section["total"]
    beside = f"over {total['num_documents']:,} documents"
    return [
        SummaryRow(name, ratio(total[key]), beside, total["num_tokens"], between(total[f"{key}_interval"], ratio))
        for name, key in (("Perplexity", "perplexity"), ("Bits per byte", "bits_per_byte"))
    ]


def concentration_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of the whole paths of a section `concentration`."""
    whole = section["whole"]
    entropy, estimates = whole["entropy"], whole["estimates"]
    tokens = entropy["num_tokens"]
    of_ceiling = f"{percent(whole['share_of_ceiling'])} of the ceiling, {bits(entropy['ceiling_bits'])}"
    null = whole["independence"]["entropy_bits_null"]
    place = "concentration.whole"
    of_entropy = ends.get(f"{place}.entropy.entropy_bits")
    of_paths = None if of_entropy is None else [2**end for end in of_entropy]
    of_distinct = ends.get(f"{place}.entropy.num_paths")
    estimate = bits(estimates["chao_wang_jost_bits"])
    effective, at_most = count(entropy["effective_paths"]), f"at most {tokens:,}"
    return [
        SummaryRow(
            "Path entropy H, bits", bits(entropy["entropy_bits"]), of_ceiling, tokens, between(of_entropy, bits)
        ),
        SummaryRow("H of unlimited data, bits", estimate, _ESTIMATE, tokens),
        SummaryRow("Effective paths, 2^H", effective, at_most, tokens, between(of_paths, count)),
        SummaryRow("Distinct paths", count(entropy["num_paths"]), at_most, tokens, between(of_distinct, count)),
        SummaryRow("H of independent layers, bits", bits(null), "same loads, unlimited data", tokens),
    ]


def sketch_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of the whole paths of `SketchedPaths` as a dict."""
    whole = section["whole"]
    entropy, tokens = whole["entropy"], whole["entropy"]["num_tokens"]
    of_ceiling = f"{percent(whole['share_of_ceiling'])} of the ceiling, {bits(whole['ceiling_bits'])}"
    bits_error = standard_error(entropy["entropy_standard_error_bits"])
    paths_error = standard_error(entropy["num_paths_standard_error"])
    null = bits(whole["entropy_bits_null"])
    return [
        SummaryRow("Path entropy H, bits", bits(entropy["entropy_bits"]), of_ceiling + bits_error, tokens),
        SummaryRow("Effective paths, 2^H", count(entropy["effective_paths"]), f"at most {tokens:,}", tokens),
        SummaryRow("Distinct paths", count(entropy["num_paths"]), f"at most {tokens:,}{paths_error}", tokens),
        SummaryRow("H of independent layers, bits", null, "same loads, unlimited data", tokens),
    ]


_ESTIMATE = "an estimate (Chao, Wang, Jost), still too low for heavy tails"


def consistency_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of `Consistency` as a dict, what leads first."""
    groups: list[Callable[[Section, Ends], list[SummaryRow]]] = [_companion_rows, _index_rows]
    if section["leads_with"] == "indices":
        groups.reverse()
    return [row for rows in groups for row in rows(section, ends)]


def _companion_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    information, matching, tokens = section["information"], section["matching"], section["num_tokens"]
    chance = bits(mean(information["adjacent_bits_null_highest"]))
    return [
        SummaryRow(
            "Information of neighbouring layers, bits",
            bits(information["corrected_bits_means"]["adjacent"]),
            f"{chance} at most in {information['num_permutations']} permutations",
            tokens,
            between(ends.get("consistency.information.corrected_bits_means.adjacent"), bits),
        ),
        SummaryRow(
            "Agreement after matching experts",
            percent(matching["agreement_means"]["adjacent"]),
            f"{percent(mean(matching['adjacent_agreement_null_permuted']))} by chance",
            tokens,
            between(ends.get("consistency.matching.agreement_means.adjacent"), percent),
        ),
    ]


def _index_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    agreement, overlap, tokens = section["agreement"], section["overlap"], section["num_tokens"]
    naming = "; a matter of naming here" if section["leads_with"] == "companions" else ""
    rows = [
        SummaryRow(
            "Same index in neighbouring layers",
            percent(agreement["mean_agreement"]),
            f"{percent(agreement['mean_agreement_null'])} by chance{naming}",
            tokens,
            between(ends.get("consistency.agreement.mean_agreement"), percent),
        )
    ]
    null = overlap["jaccard_null_loads_means"] or overlap["jaccard_null_loads_ratio_means"]
    for name, key in _PAIRS.items():
        if overlap["jaccard_means"][key] is not None:
            value, chance = percent(overlap["jaccard_means"][key]), percent(null[key])
            of_pairs = between(ends.get(f"consistency.overlap.jaccard_means.{key}"), percent)
            rows.append(SummaryRow(f"Jaccard, {name}", value, f"{chance} by chance{naming}", tokens, of_pairs))
    scope = section["engagement"]["all_layers"]
    observed, expected = scope["observed"]["token_share"], scope["null_loads"]["token_share"]
    if len(observed) >= SUSTAINED:
        value, chance = percent(observed[SUSTAINED - 1]), percent(expected[SUSTAINED - 1])
        name = f"Tokens that keep an index {SUSTAINED} layers"
        place = f"consistency.engagement.all_layers.observed.token_share.{SUSTAINED - 1}"
        of_tokens = between(ends.get(place), percent)
        rows.append(SummaryRow(name, value, f"{chance} by chance{naming}", tokens, of_tokens))
    return rows


_PAIRS = {
    "neighbouring layers": "adjacent",
    "layers of one router": "within_blocks",
    "layers of different routers": "across_blocks",
}


def load_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of `Load` as a dict, over all picks."""
    balance, tokens = section["all_picks"], section["num_tokens"]
    return [
        SummaryRow(
            "Load entropy, share of its maximum",
            percent(balance["mean_entropy_share"]),
            "100% if equal",
            tokens,
            between(ends.get("load.all_picks.mean_entropy_share"), percent),
        ),
        SummaryRow(
            "Busiest expert over the mean",
            ratio(balance["mean_max_over_mean"]),
            f"{ratio(balance['max_over_mean_null'])} for equal experts",
            tokens,
            between(ends.get("load.all_picks.mean_max_over_mean"), ratio),
        ),
        SummaryRow(
            "Dead experts a layer",
            ratio(balance["mean_dead_experts"]),
            f"{ratio(balance['dead_experts_null'])} for equal experts, of {section['num_experts']}",
            tokens,
        ),
    ]


def router_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of `RouterScores` as a dict."""
    tokens = section["num_tokens"]
    rows = [
        SummaryRow(
            "Router entropy, bits",
            bits(section["mean_entropy_bits"]),
            f"{bits(section['entropy_bits_null'])} for equal scores",
            tokens,
            between(ends.get("router_scores.mean_entropy_bits"), bits),
        ),
        SummaryRow(
            "Router confidence",
            percent(section["mean_confidence"]),
            f"{percent(section['confidence_null'])} for equal scores",
            tokens,
            between(ends.get("router_scores.mean_confidence"), percent),
        ),
    ]
    if section["mean_margin_logits"] is not None:
        value = ratio(section["mean_margin_logits"])
        of_margin = between(ends.get("router_scores.mean_margin_logits"), ratio)
        rows.append(SummaryRow("Margin of the last choice, logits", value, "0 for a tie", tokens, of_margin))
    return rows


def separation_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of `PathSeparation` as a dict."""
    whole = section["whole"]["all_paths"]
    return [
        SummaryRow(
            "Classes told by paths, above chance",
            percent(whole["normalised_excess"]),
            f"of {bits(whole['class_entropy_bits'])} bits in {whole['num_classes']} classes",
            section["num_tokens"],
        )
    ]


def perturbation_rows(section: Section, ends: Ends) -> list[SummaryRow]:
    """Of `Robustness` as a dict: one for each intervention."""
    return [
        SummaryRow(f"Perplexity, {perturbed_name(one)}", ratio(one["perplexity"]), _rise(one), section["num_tokens"])
        for one in section["perturbed"]
    ]


def perturbed_name(perturbed: Section) -> str:
    """An intervention with its setting: `logit noise 0.5`."""
    setting = perturbed["setting"]
    if setting is not None:
        return f"{perturbed['intervention']} {setting:g}"
    return f"{perturbed['intervention']}, all" if perturbed["listed_share"] is not None else perturbed["intervention"]


def _rise(perturbed: Section) -> str:
    rise, ends = perturbed["rise_percent"], perturbed["rise_percent_interval"]
    if rise is None:
        return "beyond all bounds"
    return f"{rise:+z,.1f}%" + ("" if ends is None else f" ({ends[0]:+z,.1f}% to {ends[1]:+z,.1f}%)")


SUMMARY_OF_SECTION: dict[str, Callable[[Any, Ends], list[SummaryRow]]] = {
    "perplexity": perplexity_rows,
    "concentration": concentration_rows,
    "sketch": sketch_rows,
    "consistency": consistency_rows,
    "load": load_rows,
    "router_scores": router_rows,
    "separation": separation_rows,
    "perturbation": perturbation_rows,
    "geometry": geometry_rows,
    "geometry_interventions": intervention_rows,
    **LOCALITY_ROWS,
}
