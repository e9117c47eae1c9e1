"""A model's documents scored again under every intervention: what `robustness` is computed from."""

# Shapes: N counted tokens, M documents, L MoE layers, E experts, P listed paths, R seeds.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from pathmoe_eval.evaluation.scoring import ScoredBatch, join_scores, scored_batches
from pathmoe_eval.evaluation.windows import Tokens, Window, score_windows
from pathmoe_eval.perturbations.interventions import index_permutations, permuted_experts, reassigned_experts
from pathmoe_eval.perturbations.listed_paths import (
    is_listed,
    most_frequent_paths,
    only_listed_paths,
    paths_of_trace,
)
from pathmoe_eval.perturbations.robustness import PER_BLOCK, PER_LAYER, PerturbedSums, Robustness, robustness
from pathmoe_eval.perturbations.router_interventions import experts_per_token, noisy_logits
from pathmoe_eval.traces.moe_layers import moe_layers
from pathmoe_eval.traces.recorder import RoutingRecorder


@dataclass(frozen=True, kw_only=True)
class Perturbations:
    """Which interventions; the fields are options of the same names."""

    num_seeds: int = 3
    """Draws of each intervention that draws: seeds 0, 1, ..."""
    noise_sizes: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    """Standard deviations of logit noise, in units of `logit_std`: each layer's own, over the documents."""
    path_numbers: tuple[int | None, ...] = (10, 100, 500, None)
    """How many of the most frequent paths are listed; None for all that were seen."""
    paths_from: Path | None = None
    """A trace whose paths are listed, recorded on other data; None lists those of the scored documents themselves, of
    which the list then knows more than of other text."""
    expert_numbers: tuple[int, ...] | None = None
    """Experts for each token; None for 1, 2, 4, ... up to twice the model's own number, which is left out."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if self.num_seeds < 1:
            raise ValueError(f"--num_seeds ({self.num_seeds}) must be at least 1; raise it")
        if wrong := [size for size in self.noise_sizes if not 0 <= size < math.inf]:
            raise ValueError(f"--noise_sizes ({wrong[0]}) must be finite and at least 0; change it")
        if wrong := [number for number in self.path_numbers if number is not None and number < 1]:
            raise ValueError(f"--path_numbers ({wrong[0]}) must be at least 1; change it, or give null for all")
        if wrong := [number for number in self.expert_numbers or () if number < 1]:
            raise ValueError(f"--expert_numbers ({wrong[0]}) must be at least 1; change it")


@dataclass(frozen=True, eq=False, kw_only=True)
class FreeModel:
    """What the model does without an intervention."""

    nats_M: NDArray[np.float64]
    """Sum of -ln p over each document's scored tokens."""
    num_tokens_M: NDArray[np.int64]
    """How many these are."""
    path_ids_NL: NDArray[np.unsignedinteger]
    """Top-1 path of each counted token."""
    num_experts_per_tok: int
    router_of_layer: tuple[int, ...]
    logit_std_L: NDArray[np.float64]
    """Standard deviation of each layer's router logits over counted tokens and experts."""


def measure_robustness(
    model: PreTrainedModel,
    documents: Sequence[Tokens],
    perturbations: Perturbations,
    *,
    max_length: int,
    stride: int,
    windows_per_forward: int = 1,
    num_resamples: int = 1000,
    bootstrap_seed: int = 0,
) -> Robustness:
    """Perplexity of documents under every intervention, in windows of `score_windows`.

    Args:
        model: a causal language model with routers, in evaluation mode.
        documents: tokenised documents.
        perturbations: which interventions.
        max_length: inputs of a window at most.
        stride: inputs between the beginnings of two windows.
        windows_per_forward: see `scored_batches`.
        num_resamples: of each bootstrap.
        bootstrap_seed: of each bootstrap.

    Raises:
        ValueError: see `score_windows`, `scored_batches`, `RoutingRecorder`, `paths_of_trace`, the interventions and
            `robustness`; more experts for each token than there are.
    """
    layers = moe_layers(model)
    num_experts = layers[0].num_experts
    if wrong := [number for number in perturbations.expert_numbers or () if number > num_experts]:
        raise ValueError(f"--expert_numbers ({wrong[0]}) must be at most the model's experts ({num_experts}); lower it")
    paths_from = perturbations.paths_from
    of_trace_PL = None if paths_from is None else paths_of_trace(paths_from, len(layers), num_experts)
    windows = list(score_windows(documents, max_length, stride))
    free = score_free(model, windows, len(documents), windows_per_forward)
    paths_PL = most_frequent_paths(free.path_ids_NL, None) if of_trace_PL is None else of_trace_PL
    perturbed = []
    for intervention in _interventions(model, free, paths_PL, perturbations):
        nats = []
        for draw in intervention.draws:
            with draw():
                batches = scored_batches(model, windows, windows_per_forward)
                nats.append(document_sums(batches, len(documents))[0])
        perturbed.append(
            PerturbedSums(
                intervention=intervention.name,
                setting=intervention.setting,
                nats_RM=np.stack(nats),
                listed_share=intervention.listed_share,
            )
        )
    result = robustness(
        free.nats_M,
        free.num_tokens_M,
        perturbed,
        free.router_of_layer,
        num_resamples=num_resamples,
        seed=bootstrap_seed,
    )
    return replace(result, paths_from=None if paths_from is None else str(paths_from))


def score_free(
    model: PreTrainedModel, windows: Sequence[Window], num_documents: int, windows_per_forward: int = 1
) -> FreeModel:
    """Score windows without an intervention, and record what interventions are measured by.

    Raises:
        ValueError: see `RoutingRecorder` and `scored_batches`; no window.
    """
    if not windows:
        raise ValueError("--data (0 tokens) must hold text; give other data")
    batches, paths = [], []
    with RoutingRecorder(model, logits=True) as recorder:
        shape = (len(recorder.layers),)
        num_values, sum_L, squares_L = 0, np.zeros(shape), np.zeros(shape)
        for batch in scored_batches(model, windows, windows_per_forward):
            recorded, is_counted_N = recorder.take(), batch.is_counted_BS.ravel()
            assert recorded.logits_NLE is not None
            logits_NLE = recorded.logits_NLE[is_counted_N].astype(np.float64)
            num_values += logits_NLE.shape[0] * logits_NLE.shape[2]
            sum_L += logits_NLE.sum(axis=(0, 2))
            squares_L += (logits_NLE**2).sum(axis=(0, 2))
            paths.append(recorded.expert_ids_NLK[is_counted_N, :, 0])
            batches.append(batch)
    nats_M, num_tokens_M = document_sums(batches, num_documents)
    return FreeModel(
        nats_M=nats_M,
        num_tokens_M=num_tokens_M,
        path_ids_NL=np.concatenate(paths),
        num_experts_per_tok=recorded.expert_ids_NLK.shape[2],
        router_of_layer=recorder.router_of_layer,
        logit_std_L=np.sqrt(np.maximum(squares_L / num_values - (sum_L / num_values) ** 2, 0)),
    )


def document_sums(
    batches: Sequence[ScoredBatch] | Iterator[ScoredBatch], num_documents: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum of -ln p of each document's scored tokens, correctly rounded, and their number: [M] and [M]."""
    scores = join_scores(batches)
    bounds = np.searchsorted(scores.document_N, np.arange(num_documents + 1))
    of_document = np.split(-scores.log_probability_N, bounds[1:-1])
    return np.array([math.fsum(nats) for nats in of_document]), np.diff(bounds)


@dataclass(frozen=True, eq=False)
class _Intervention:
    name: str
    setting: float | None
    draws: list[Callable[[], AbstractContextManager[None]]]
    """Each makes the intervention with a seed of its own; one where nothing is drawn."""
    listed_share: float | None = None


def _interventions(
    model: PreTrainedModel, free: FreeModel, paths_PL: NDArray[np.integer], perturbations: Perturbations
) -> Iterator[_Intervention]:
    num_experts, seeds = moe_layers(model)[0].num_experts, range(perturbations.num_seeds)
    for name, labels in ((PER_LAYER, range(len(free.router_of_layer))), (PER_BLOCK, free.router_of_layer)):
        permutations = [index_permutations(labels, num_experts, seed) for seed in seeds]
        yield _Intervention(name, None, [partial(permuted_experts, model, table_LE) for table_LE in permutations])
    yield _Intervention("random reassignment", None, [partial(reassigned_experts, model, seed) for seed in seeds])
    for size in perturbations.noise_sizes:
        std_L = (size * free.logit_std_L).tolist()
        yield _Intervention("logit noise", size, [partial(noisy_logits, model, std_L, seed) for seed in seeds])
    for number in perturbations.path_numbers:
        listed_PL = paths_PL[:number]
        share = float(is_listed(free.path_ids_NL, listed_PL).mean())
        yield _Intervention("listed paths only", number, [partial(only_listed_paths, model, listed_PL)], share)
    numbers = perturbations.expert_numbers
    if numbers is None:
        numbers = _default_expert_numbers(free.num_experts_per_tok, num_experts)
    for number in numbers:
        yield _Intervention("experts per token", number, [partial(experts_per_token, model, number)])


def _default_expert_numbers(own: int, num_experts: int) -> tuple[int, ...]:
    powers = [1 << exponent for exponent in range((2 * own).bit_length())]
    return tuple(number for number in powers if number <= min(2 * own, num_experts) and number != own)
