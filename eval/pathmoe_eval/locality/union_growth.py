"""How many experts n samples of one prompt touch together, when they are decoded side by side."""

# Shapes: S steps, M samples, L MoE layers, E experts, K experts per token, R numbers of samples, C counts of samples.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.generation.tree import GenerationTree


@dataclass(frozen=True, kw_only=True)
class StepBin:
    """Some of the steps; the tuples have one entry for each of `UnionGrowth.sample_counts`."""

    first_step: int
    """Tokens since the prompt, 1 for the first generated."""
    last_step: int | None
    """Included; None without end."""
    num_steps: int
    """Steps with enough samples."""
    union: tuple[float, ...] | None
    """As in `UnionGrowth`; None without steps."""


@dataclass(frozen=True, kw_only=True)
class UnionGrowth:
    """Distinct experts that n samples touch in one step, beside laws of chance.

    Samples are completions of one tree, each at the same step since the prompt; those that share a prefix have the same
    token there. All n are of the same steps: those at which as many go on as the largest n. There is no interval, since
    a resample has samples twice, which touch nothing new.
    """

    num_samples: int
    """Completions of the tree."""
    num_steps: int
    """Steps that count."""
    sample_counts: tuple[int, ...]
    """The n of what follows; the tuples have one entry for each."""
    union: tuple[float, ...]
    """Distinct experts of n samples: exact mean over all choices of n of those that go on, mean over steps, then over
    layers."""
    union_of_layer: tuple[tuple[float, ...], ...]
    """The same of each layer."""
    union_null_uniform: tuple[float, ...]
    """E (1 - (1 - k/E)^n): n independent sets, all equally likely."""
    union_null_loads: tuple[float, ...]
    """Sum over e of 1 - (1 - q_e)^n, mean over layers: n independent tokens with the loads q of the tokens counted."""
    union_of_layer_null_loads: tuple[tuple[float, ...], ...]
    """The same of each layer."""
    bins: tuple[StepBin, ...]
    """By step."""


def union_growth(tree: GenerationTree, *, sample_counts: Sequence[int], step_starts: Sequence[int]) -> UnionGrowth:
    """Growth of the union of experts over samples of a tree.

    The mean over choices needs no choice: of M samples of which c take an expert, n without it are chosen with
    probability C(M - c, n) / C(M, n), so that the mean is the sum over experts of what is left to 1.

    Args:
        tree: the tree.
        sample_counts: ascending, from 1 or more.
        step_starts: the first step of each bin, ascending from 1; the last bin has no end.

    Raises:
        ValueError: counts or steps that do not ascend, or more samples than go on at any step.
    """
    counts, starts = list(sample_counts), list(step_starts)
    if not counts or counts[0] < 1 or counts != sorted(set(counts)):
        raise ValueError(f"sample_counts ({counts}) must ascend from 1 or more; change them")
    if starts[:1] != [1] or starts != sorted(set(starts)):
        raise ValueError(f"step_starts ({starts}) must ascend from 1; change them")
    node_MS = sample_nodes(tree)
    alive_S = np.count_nonzero(node_MS >= 0, axis=0)
    steps_S = np.flatnonzero(alive_S >= counts[-1])
    if not len(steps_S):
        most = int(alive_S.max(initial=0))
        raise ValueError(
            f"sample_counts ({counts[-1]}) must be at most the completions that go on at a step ({most}); lower it, or "
            "generate more"
        )
    union_SLR = np.empty((len(steps_S), tree.num_layers, len(counts)))
    load_LE = np.zeros((tree.num_layers, tree.num_experts))
    for index, step in enumerate(steps_S.tolist()):
        nodes_M = node_MS[node_MS[:, step] >= 0, step]
        takers_LE = _takers(tree, nodes_M)
        load_LE += takers_LE
        union_SLR[index] = _touched(len(nodes_M), counts)[takers_LE].sum(axis=1)
    load_LE /= alive_S[steps_S].sum()
    union_LR = union_SLR.mean(axis=0)
    loads_LR = np.stack([1 - (1 - load_LE) ** n for n in counts], axis=-1).sum(axis=1)
    share = tree.num_experts_per_tok / tree.num_experts
    return UnionGrowth(
        num_samples=len(node_MS),
        num_steps=len(steps_S),
        sample_counts=tuple(counts),
        union=tuple(union_LR.mean(axis=0).tolist()),
        union_of_layer=tuple(map(tuple, union_LR.tolist())),
        union_null_uniform=tuple(tree.num_experts * (1 - (1 - share) ** n) for n in counts),
        union_null_loads=tuple(loads_LR.mean(axis=0).tolist()),
        union_of_layer_null_loads=tuple(map(tuple, loads_LR.tolist())),
        bins=tuple(
            _step_bin(first, after, steps_S + 1, union_SLR)
            for first, after in zip(starts, [*starts[1:], None], strict=True)
        ),
    )


def sample_nodes(tree: GenerationTree) -> NDArray[np.int64]:
    """The node of each completion at each step since the prompt, int64 [samples, steps], -1 where it has no routing:
    at its last token, and after it."""
    completions = tree.completions()
    num_steps = int(tree.depth_N[completions].max(initial=tree.prompt_length - 1)) + 1 - tree.prompt_length
    node_MS = np.full((len(completions), num_steps), -1, dtype=np.int64)
    for sample, completion in enumerate(completions.tolist()):
        nodes = tree.path(completion)[tree.prompt_length :]
        node_MS[sample, : len(nodes)] = np.where(tree.has_routing_N[nodes], nodes, -1)
    return node_MS


def _takers(tree: GenerationTree, nodes_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the nodes take each expert, int64 [layers, experts]."""
    ids_LMK = tree.expert_ids_NLK[nodes_M].transpose(1, 0, 2)
    return np.stack([np.bincount(ids_MK.ravel(), minlength=tree.num_experts) for ids_MK in ids_LMK])


def _touched(num_samples: int, sample_counts: Sequence[int]) -> NDArray[np.float64]:
    """Probability that n of the samples hold one of c, float64 [c from 0 to num_samples, one for each n]."""
    count_C = np.arange(num_samples + 1)[:, None]
    drawn = np.arange(sample_counts[-1])
    # C(M - c, n) / C(M, n) as a product over the samples drawn one by one, each without the expert.
    left = np.maximum(num_samples - count_C - drawn, 0) / (num_samples - drawn)
    return 1 - np.cumprod(left, axis=1)[:, np.array(sample_counts) - 1]


def _step_bin(first: int, after: int | None, step_S: NDArray[np.int64], union_SLR: NDArray[np.float64]) -> StepBin:
    is_in_S = (step_S >= first) & (step_S < (np.inf if after is None else after))
    union = tuple(union_SLR[is_in_S].mean(axis=(0, 1)).tolist()) if is_in_S.any() else None
    return StepBin(
        first_step=first,
        last_step=None if after is None else after - 1,
        num_steps=int(np.count_nonzero(is_in_S)),
        union=union,
    )
