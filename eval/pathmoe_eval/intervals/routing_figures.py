"""The figures of a report that have an interval, from counts that parts of the tokens can be taken from.

A figure is named by its place in a report: `load.all_picks.mean_entropy_share`.
"""

# Shapes: N tokens, L MoE layers, K experts per token, A = L - 1 adjacent pairs of layers, E experts,
# C distinct values of a count.

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.experts.load import LoadCounts, balance_figures
from pathmoe_eval.experts.router_scores import RouterScoreSums
from pathmoe_eval.layers.agreement import index_agreement, mutual_information_bits
from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.layers.matching import best_matching
from pathmoe_eval.paths.coverage import TOP_PATHS, tokens_on_top
from pathmoe_eval.paths.entropy import plug_in_bits


def limits(place: str, num_tokens: int) -> tuple[float, float]:
    """The range of a figure of so many tokens, for an interval to keep to."""
    of_place = {
        "concentration.whole.entropy.entropy_bits": (0.0, math.log2(num_tokens)),
        "concentration.whole.entropy.num_paths": (1.0, float(num_tokens)),
        "consistency.information.corrected_bits_means.adjacent": (-math.inf, math.inf),
        "load.all_picks.mean_max_over_mean": (1.0, math.inf),
        "router_scores.mean_entropy_bits": (0.0, math.inf),
        "router_scores.mean_margin_logits": (0.0, math.inf),
    }
    return of_place.get(place, (0.0, 1.0))


def concentration_figures(sizes_C: NDArray[np.int64], multiplicity_C: NDArray[np.int64]) -> dict[str, float]:
    """Figures of paths of which `multiplicity_C` occur `sizes_C` times each, int64 [C], ascending.

    Entropy and distinct paths are left out where every path is distinct: they are the number of tokens then.
    """
    num_tokens, num_paths = int(sizes_C @ multiplicity_C), int(multiplicity_C.sum())
    top = [number for number in TOP_PATHS if number <= num_paths]
    shares = (tokens / num_tokens for tokens in tokens_on_top(sizes_C, multiplicity_C, top))
    of_paths = {
        "concentration.whole.entropy.entropy_bits": plug_in_bits(sizes_C, multiplicity_C),
        "concentration.whole.entropy.num_paths": float(num_paths),
    }
    return {
        **(of_paths if num_paths < num_tokens else {}),
        **{f"concentration.whole.coverage.share.{index}": share for index, share in enumerate(shares)},
    }


def layer_figures(counts: ConsistencyCounts) -> dict[str, float]:
    """Figures of layers, over all neighbouring pairs or all pairs of a kind."""
    joint_AEE = counts.joint.adjacent_top1()
    num_tokens = counts.joint.num_tokens
    figures = {
        "consistency.agreement.mean_agreement": index_agreement(joint_AEE).mean_agreement,
        "consistency.information.corrected_bits_means.adjacent": float(
            np.mean([mutual_information_bits(joint_EE)[1] for joint_EE in joint_AEE])
        ),
        "consistency.matching.agreement_means.adjacent": float(
            np.mean([best_matching(joint_EE) / num_tokens for joint_EE in joint_AEE])
        ),
    }
    for kind, mean in asdict(counts.overlap.jaccard_means()).items():
        if mean is not None:
            figures[f"consistency.overlap.jaccard_means.{kind}"] = mean
    for index, share in enumerate(counts.engagement.token_share()):
        figures[f"consistency.engagement.all_layers.observed.token_share.{index}"] = share
    return figures


def load_figures(counts: LoadCounts) -> dict[str, float]:
    """Figures of the balance of all picks, means over layers."""
    figures = balance_figures(counts.picks())
    means = {"mean_max_over_mean": float(np.mean(figures["max_over_mean"]))}
    if (num_experts := counts.shape.num_experts) > 1:
        means["mean_entropy_share"] = float(np.mean(figures["entropy_bits"])) / math.log2(num_experts)
    return {f"load.all_picks.{name}": mean for name, mean in means.items()}


def router_figures(counts: RouterScoreSums) -> dict[str, float]:
    """Figures of router scores, means over layers."""
    means = {name: value for name, value in asdict(counts.result()).items() if name.startswith("mean_")}
    return {f"router_scores.{name}": mean for name, mean in means.items() if mean is not None}
