"""Routing of the prompt, of what was generated, and of both: load, distinct experts, how alike neighbours are."""

# Shapes: N nodes, L MoE layers, E experts, A pairs of neighbouring tokens.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.experts.load import LoadBalance, count_picks, load_balance, uniform_counts
from pathmoe_eval.generation.tree import GenerationTree
from pathmoe_eval.layers.layer_overlap import jaccard_null_uniform, jaccard_null_uniform_ratio
from pathmoe_eval.locality.node_overlap import NodeOverlap

_NULL_SAMPLES = 500
_NULL_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Routing of one phase; tuples have one entry a layer."""

    phase: str
    """"prefill": the prompt; "generation": what follows it; "cumulative": both."""
    num_tokens: int
    """Tokens with routing; what completions share counts once."""
    load: LoadBalance
    """How evenly experts are used, by every pick."""
    distinct_experts: tuple[int, ...]
    """Experts that any token of the phase picks."""
    distinct_experts_null_uniform: float
    """E (1 - (1 - k/E)^tokens): the mean where each token draws its set uniformly."""
    num_neighbours: int
    """Pairs of a token and the one before it, both of the phase."""
    neighbour_jaccard: tuple[float, ...] | None
    """Mean Jaccard of the expert sets of such pairs; None without pairs."""
    neighbour_jaccard_null_loads_ratio: tuple[float, ...]
    """i / (2k - i), with i the expected |A n B| of two independent tokens with the loads of the phase."""
    mean_neighbour_jaccard: float | None
    """Mean of `neighbour_jaccard` over layers."""
    mean_neighbour_jaccard_null_loads_ratio: float
    """Mean of its null over layers."""


@dataclass(frozen=True, kw_only=True)
class Phases:
    """The phases side by side."""

    phases: tuple[Phase, ...]
    """Prefill, generation, cumulative; a phase without a token is left out."""
    neighbour_jaccard_null_uniform: float
    """Exact mean for independent uniform sets."""
    neighbour_jaccard_null_uniform_ratio: float
    """Ratio of means for independent uniform sets, k / (2E - k)."""
    load_overlap: tuple[float, ...] | None
    """Sum over experts of the smaller of their shares of the picks in prefill and in generation: 1 where loads are the
    same, 0 where no expert serves both; one entry a layer. None without either."""
    load_overlap_null_uniform: float | None
    """What it is on average where all tokens of both draw their sets uniformly, from seeded samples: below 1, since few
    tokens use experts unevenly by luck."""


def phases(tree: GenerationTree) -> Phases:
    """Figures of each phase of a tree: generated tokens are counted once, however many completions share them.

    Raises:
        ValueError: no token of the tree has routing.
    """
    is_prompt_N = np.arange(tree.num_nodes) < tree.prompt_length
    overlap = NodeOverlap(tree)
    of_phase = {
        "prefill": is_prompt_N & tree.has_routing_N,
        "generation": ~is_prompt_N & tree.has_routing_N,
        "cumulative": tree.has_routing_N,
    }
    found = tuple(_phase(tree, overlap, name, is_in_N) for name, is_in_N in of_phase.items() if is_in_N.any())
    if not found:
        raise ValueError(f"has_routing ({tree.num_nodes} nodes) must be True of a token; record the routing")
    shape = tree.num_experts, tree.num_experts_per_tok
    has_both = of_phase["prefill"].any() and of_phase["generation"].any()
    return Phases(
        phases=found,
        neighbour_jaccard_null_uniform=jaccard_null_uniform(*shape),
        neighbour_jaccard_null_uniform_ratio=jaccard_null_uniform_ratio(*shape),
        load_overlap=_load_overlap(*(np.array(phase.load.counts) for phase in found[:2])) if has_both else None,
        load_overlap_null_uniform=_load_overlap_null(tree, [phase.num_tokens for phase in found[:2]])
        if has_both
        else None,
    )


def _phase(tree: GenerationTree, overlap: NodeOverlap, name: str, is_in_N: NDArray[np.bool_]) -> Phase:
    num_tokens, num_experts, num_picks = int(is_in_N.sum()), tree.num_experts, tree.num_experts_per_tok
    counts_LE = count_picks(tree.expert_ids_NLK[is_in_N].transpose(1, 2, 0), num_experts)
    load_LE = counts_LE / num_tokens
    expected_L = (load_LE**2).sum(axis=1)
    null_L = expected_L / (2 * num_picks - expected_L)
    second_A = np.flatnonzero(is_in_N[1:] & is_in_N[tree.parent_N[1:]]) + 1
    jaccard_L = overlap.jaccard(tree.parent_N[second_A], second_A).mean(axis=1) if len(second_A) else None
    return Phase(
        phase=name,
        num_tokens=num_tokens,
        load=load_balance(counts_LE, num_tokens),
        distinct_experts=tuple(np.count_nonzero(counts_LE, axis=1).tolist()),
        distinct_experts_null_uniform=num_experts * (1 - (1 - num_picks / num_experts) ** num_tokens),
        num_neighbours=len(second_A),
        neighbour_jaccard=None if jaccard_L is None else tuple(jaccard_L.tolist()),
        neighbour_jaccard_null_loads_ratio=tuple(null_L.tolist()),
        mean_neighbour_jaccard=None if jaccard_L is None else float(jaccard_L.mean()),
        mean_neighbour_jaccard_null_loads_ratio=float(null_L.mean()),
    )


def _load_overlap(counts_LE: NDArray[np.int64], other_LE: NDArray[np.int64]) -> tuple[float, ...]:
    shares = [counts / counts.sum(axis=1, keepdims=True) for counts in (counts_LE, other_LE)]
    return tuple(np.minimum(*shares).sum(axis=1).tolist())


def _load_overlap_null(tree: GenerationTree, num_tokens: list[int]) -> float:
    drawn = [
        uniform_counts(count, tree.num_experts, tree.num_experts_per_tok, _NULL_SAMPLES, _NULL_SEED + place)
        for place, count in enumerate(num_tokens)
    ]
    return float(np.mean(_load_overlap(*drawn)))
