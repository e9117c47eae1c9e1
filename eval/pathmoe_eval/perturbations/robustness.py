"""How much perplexity rises under interventions: from sums of log-probabilities over documents, free and perturbed.

Two spreads stand beside each rise and are two things. The interval is of the draw of documents: the bootstrap takes the
same documents for the free model and for all seeds. The standard deviation is of the draw of the intervention.
"""

# Shapes: M documents, R seeds.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.bootstrap import Bootstrap
from pathmoe_eval.evaluation.perplexity import perplexity_of


@dataclass(frozen=True, eq=False, kw_only=True)
class PerturbedSums:
    """What was scored under one intervention, on the documents of the free model."""

    intervention: str
    """Name, such as `logit noise`."""
    setting: float | None
    """Its size or number; None where it has none, or where it means all."""
    nats_RM: NDArray[np.float64]
    """Sum of -ln p over each document's scored tokens, a row for each seed."""
    listed_share: float | None = None
    """Share of tokens whose own path was listed; None where no paths are listed."""


@dataclass(frozen=True, kw_only=True)
class PerturbedPerplexity:
    """One intervention. Rises are relative to the free model's perplexity, in percent: 0 is no change."""

    intervention: str
    setting: float | None
    """Noise: size; paths: how many are listed, None for all; k: experts for each token; None where there is none."""
    num_seeds: int
    """Draws of the intervention; 1 where nothing is drawn."""
    perplexity: float | None
    """Mean over seeds of exp(nats / tokens); None beyond 1e100."""
    perplexity_of_seed: tuple[float | None, ...]
    """By seed; None beyond 1e100."""
    rise_percent: float | None
    """100 (perplexity / free perplexity - 1); None where `perplexity` is None."""
    rise_percent_interval: tuple[float, float] | None
    """Percentile bootstrap over documents, each resample taken for the free model and all seeds together; None with
    fewer than two documents, where `rise_percent` is None, or beyond the range of floats."""
    rise_percent_seed_std: float | None
    """Standard deviation over seeds (with R - 1); None with one seed, or where a perplexity is None."""
    listed_share: float | None
    """Share of counted tokens whose own path was on the list; None where no paths are listed."""


@dataclass(frozen=True, kw_only=True)
class PermutationsSideBySide:
    """Expert indices permuted: by layer, and by block of layers that share a router."""

    per_layer: PerturbedPerplexity
    per_block: PerturbedPerplexity
    num_layers: int
    """Permutations drawn per layer."""
    num_routers: int
    """Permutations drawn per block."""
    reason: str
    """How to read one beside the other."""


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """All interventions on the same documents."""

    num_documents: int
    """Documents with scored tokens."""
    num_tokens: int
    """Scored tokens."""
    free_perplexity: float | None
    """Without an intervention; None beyond 1e100."""
    perturbed: tuple[PerturbedPerplexity, ...]
    permutations: PermutationsSideBySide | None
    """None unless both permutations are among `perturbed`."""
    confidence: float
    """Of the intervals over documents."""
    num_resamples: int
    """Of each bootstrap."""
    seed: int
    """Of each bootstrap."""
    paths_from: str | None = None
    """Trace whose paths are listed; None for the scored documents."""


PER_LAYER, PER_BLOCK = "permutation per layer", "permutation per router block"


def robustness(
    free_nats_M: NDArray[np.float64],
    num_tokens_M: NDArray[np.integer],
    perturbed: Sequence[PerturbedSums],
    router_of_layer: Sequence[int],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Robustness:
    """Perplexity under each intervention beside that of the free model, from sums over documents.

    Means over seeds are of perplexities, the percentages those of PathMoE (arXiv 2603.18297), which gives neither seeds
    nor intervals: both are our choice.

    Args:
        free_nats_M: [M] sum of -ln p over each document's scored tokens.
        num_tokens_M: [M] how many these are; documents without any are left out.
        perturbed: the same under each intervention.
        router_of_layer: one integer a layer, equal where layers share a router.
        num_resamples: of each bootstrap.
        seed: of each bootstrap.
        confidence: of the intervals.

    Raises:
        ValueError: no scored token, sums over other documents, or a bootstrap setting out of range.
    """
    settings = Bootstrap(num_resamples=num_resamples, seed=seed, confidence=confidence)
    for sums in perturbed:
        if sums.nats_RM.ndim != 2 or sums.nats_RM.shape[1] != len(free_nats_M):
            raise ValueError(
                f"nats of {sums.intervention} ({list(sums.nats_RM.shape)}) must be one row a seed of the "
                f"{len(free_nats_M)} documents; score the same ones"
            )
    is_scored_M = num_tokens_M > 0
    if not is_scored_M.any():
        raise ValueError("--data (0 scored tokens) must hold a document of at least 2 tokens; give longer text")
    free_nats_M, num_tokens_M = free_nats_M[is_scored_M], num_tokens_M[is_scored_M]
    found = tuple(_perturbed(free_nats_M, num_tokens_M, sums, is_scored_M, settings) for sums in perturbed)
    return Robustness(
        num_documents=len(free_nats_M),
        num_tokens=int(num_tokens_M.sum()),
        free_perplexity=perplexity_of(math.fsum(free_nats_M) / int(num_tokens_M.sum())),
        perturbed=found,
        permutations=_side_by_side(found, router_of_layer),
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
    )


def _perturbed(
    free_nats_M: NDArray[np.float64],
    num_tokens_M: NDArray[np.integer],
    sums: PerturbedSums,
    is_scored_M: NDArray[np.bool_],
    settings: Bootstrap,
) -> PerturbedPerplexity:
    nats_RM, num_tokens = sums.nats_RM[:, is_scored_M], int(num_tokens_M.sum())
    of_seed = tuple(perplexity_of(math.fsum(nats_M) / num_tokens) for nats_M in nats_RM)
    known = [value for value in of_seed if value is not None]
    free = perplexity_of(math.fsum(free_nats_M) / num_tokens)
    mean = math.fsum(known) / len(of_seed) if len(known) == len(of_seed) else None
    rise = spread = None
    if mean is not None and free is not None:
        rise = 100 * (mean / free - 1)
        spread = 100 * float(np.std(known, ddof=1)) / free if len(known) > 1 else None
    return PerturbedPerplexity(
        intervention=sums.intervention,
        setting=sums.setting,
        num_seeds=len(of_seed),
        perplexity=mean,
        perplexity_of_seed=of_seed,
        rise_percent=rise,
        rise_percent_interval=None if rise is None else _interval(free_nats_M, num_tokens_M, nats_RM, settings),
        rise_percent_seed_std=spread,
        listed_share=sums.listed_share,
    )


def _interval(
    free_nats_M: NDArray[np.float64],
    num_tokens_M: NDArray[np.integer],
    nats_RM: NDArray[np.float64],
    settings: Bootstrap,
) -> tuple[float, float] | None:
    def rise(tokens: Any, free: Any, *of_seeds: Any, axis: int) -> Any:
        total = tokens.sum(axis=axis)
        ratios = [np.exp((nats - free).sum(axis=axis) / total) for nats in of_seeds]
        return 100 * (np.mean(ratios, axis=0) - 1)

    return settings.interval((num_tokens_M, free_nats_M, *nats_RM), rise)


def _side_by_side(
    perturbed: Sequence[PerturbedPerplexity], router_of_layer: Sequence[int]
) -> PermutationsSideBySide | None:
    by_name = {one.intervention: one for one in perturbed}
    if PER_LAYER not in by_name or PER_BLOCK not in by_name:
        return None
    num_layers, num_routers = len(router_of_layer), len(set(router_of_layer))
    return PermutationsSideBySide(
        per_layer=by_name[PER_LAYER],
        per_block=by_name[PER_BLOCK],
        num_layers=num_layers,
        num_routers=num_routers,
        reason=_INDEPENDENT if num_routers == num_layers else _SHARED,
    )


_INDEPENDENT = (
    "Every layer has a router of its own, so a permutation per router block is one per layer: the two are the same "
    "intervention with the same permutations. Beside a model of shared routers, compare per layer with per layer."
)
_SHARED = (
    "Layers that share a router keep the index of a token's expert from layer to layer. One permutation for the block "
    "leaves that agreement whole, and one per layer breaks it, so that what differs between the two says nothing about "
    "the experts. Compare models of other sharing by the permutation per layer and by random reassignment."
)
