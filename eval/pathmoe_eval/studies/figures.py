"""The figures of a run that a study compares: where each stands in the reports of the run, and how it is shown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from pathmoe_eval.geometry.model_means import model_means
from pathmoe_eval.perturbations.robustness import PER_BLOCK, PER_LAYER
from pathmoe_eval.reports.number_format import UNDEFINED, bits, count, percent, ratio
from pathmoe_eval.reports.summary import SUSTAINED, perturbed_name
from pathmoe_eval.studies.figure import RISE_PERCENT, TIMES, Figure
from pathmoe_eval.studies.geometry_figures import GEOMETRY_FIGURES

PRIMARY = "bits_per_byte"
"""The one figure whose differences are tested: what a model is for, and the same for any tokenizer."""


def _four_decimals(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.4f}"


def _rise(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:+z,.1f}%"


_NAMING = "between independent routers a matter of naming"
_ADJACENT = "of neighbouring layers"

FIGURES = (
    Figure(key="perplexity", name="perplexity", place="perplexity.total.perplexity", form=ratio, factor=TIMES),
    Figure(key=PRIMARY, name="bits per byte", place="perplexity.total.bits_per_byte", form=_four_decimals),
    Figure(
        key="path_entropy_bits", name="path entropy, bits", place="concentration.whole.entropy.entropy_bits", form=bits,
        note="of the top-1 experts of all layers, at the same tokens for all runs",
    ),
    Figure(
        key="share_of_ceiling", name="share of its ceiling", place="concentration.whole.share_of_ceiling", form=percent,
        note="path entropy over the log2 of the tokens that bounds it",
    ),
    Figure(key="num_paths", name="distinct paths", place="concentration.whole.entropy.num_paths", form=count),
    Figure(
        key="agreement", name="same index", place="consistency.agreement.mean_agreement", form=percent,
        note=f"share of tokens, {_ADJACENT}; {_NAMING}",
    ),
    Figure(
        key="agreement_null", name="by chance", place="consistency.agreement.mean_agreement_null", form=percent,
        note="same index of independent layers with the same loads",
    ),
    Figure(
        key="jaccard", name="Jaccard", place="consistency.overlap.jaccard_means.adjacent", form=percent,
        note=f"of the sets of chosen experts {_ADJACENT}; {_NAMING}",
    ),
    Figure(
        key="jaccard_null", name="Jaccard by chance", place="consistency.overlap.jaccard_null_loads_means.adjacent",
        form=percent, note="of independent layers with the same loads",
    ),
    Figure(
        key="sustained", name=f"index kept {SUSTAINED} layers",
        place=f"consistency.engagement.all_layers.observed.token_share.{SUSTAINED - 1}", form=percent,
        note=f"share of tokens; {_NAMING}",
    ),
    Figure(
        key="sustained_null", name="kept by chance",
        place=f"consistency.engagement.all_layers.null_loads.token_share.{SUSTAINED - 1}", form=percent,
        note="index kept by independent layers with the same loads",
    ),
    Figure(
        key="matched_agreement", name="matched agreement", place="consistency.matching.agreement_means.adjacent",
        form=percent, note=f"same expert {_ADJACENT} after the best matching of their experts, whatever their names",
    ),
    Figure(
        key="matched_agreement_null", name="matched by chance",
        place="consistency.matching.adjacent_agreement_null_permuted", form=percent,
        note="the same after the tokens of one layer were permuted",
    ),
    Figure(
        key="information_bits", name="information, bits",
        place="consistency.information.corrected_bits_means.adjacent", form=bits,
        note=f"that one {_ADJACENT} gives about the other, bias-corrected, whatever the names",
    ),
    Figure(
        key="class_information", name="of token classes", place="separation.whole.all_paths.normalised_excess",
        form=percent, note="share of the entropy of lexical classes that paths give, less that of permuted classes",
    ),
    Figure(
        key="load_entropy_share", name="load entropy", place="load.all_picks.mean_entropy_share", form=percent,
        note="share of its maximum, of all choices, mean over layers",
    ),
    Figure(
        key="dead_experts", name="dead experts", place="load.all_picks.mean_dead_experts", form=ratio,
        note="experts of a layer without a token, mean over layers",
    ),
    Figure(
        key="roughness", name="roughness", place="training.roughness", form=_four_decimals,
        note="root mean square of what logged training losses differ from the mean of their neighbours, second half",
    ),
    Figure(
        key="perturbed_tokens", name="tokens scored", place="perturbation.scored", form=count,
        note="from the beginning of each document",
    ),
    Figure(
        key="rise_permuted_per_layer", name="rise, permuted per layer", place=f"perturbation.{PER_LAYER}", form=_rise,
        note="of perplexity where each layer permutes its experts", factor=RISE_PERCENT,
    ),
    Figure(
        key="rise_permuted_per_block", name="rise, permuted per block", place=f"perturbation.{PER_BLOCK}", form=_rise,
        note="the same with one permutation for the layers of a router", factor=RISE_PERCENT,
    ),
    Figure(
        key="rise_reassigned", name="rise, reassigned", place="perturbation.random reassignment", form=_rise,
        note="where every token is sent to random experts", factor=RISE_PERCENT,
    ),
    *(
        Figure(
            key=f"rise_{number}_paths", name=f"rise, {number} paths", place=f"perturbation.listed paths only {number}",
            form=_rise, note="where tokens are held to so many of the most frequent paths", factor=RISE_PERCENT,
        )
        for number in (10, 100, 500)
    ),
    *GEOMETRY_FIGURES,
    Figure(
        key="tokens_per_second", name="tokens per second", place="summary.tokens_per_second", form=count,
        note="of training, without validation; of the machine, and of what else ran on it",
    ),
    Figure(key="seconds", name="training time, s", place="summary.seconds", form=count),
    Figure(key="peak_memory_gib", name="peak memory, GiB", place="summary.peak_memory_gib", form=ratio),
)  # fmt: skip


def figures_of(summary: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run by key; those that are not there, or not defined, are left out.

    Args:
        summary: that lies in the run's folder.
        sections: of its reports.
    """
    robustness = sections.get("perturbation", {})
    perturbed = {perturbed_name(one): one["rise_percent"] for one in robustness.get("perturbed", [])}
    found = {
        "summary": summary,
        **sections,
        "perturbation": {"scored": robustness.get("num_tokens"), **perturbed},
        **(model_means(sections["geometry"]) if "geometry" in sections else {}),
    }
    values = {figure.key: _look_up(found, figure.place) for figure in FIGURES}
    return {key: float(value) for key, value in values.items() if value is not None}


def _look_up(found: Any, place: str) -> Any:
    for part in place.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return statistics.fmean(found) if isinstance(found, list) else found
