"""How much a token's expert in one MoE layer says about its expert in the next: index agreement, mutual information.

Whether expert 3 of one layer is "the same" as expert 3 of the next depends on the router: the index means something
when both layers share one, and is an arbitrary label when they do not. Agreement is therefore always reported with
mutual information, which no relabelling of a layer's experts changes.
"""

# Shapes: N tokens, L MoE layers, A = L - 1 adjacent pairs of layers, E experts a layer, K distinct outcomes.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.mergeable import check_mergeable
from pathmoe_eval.paths.paths import check_range, select_paths
from pathmoe_eval.routing_shape import check_some_tokens

_MAX_EXPERTS = 4096


@dataclass(frozen=True, kw_only=True)
class IndexAgreement:
    """Agreement of adjacent layers' top-1 experts; tuples have one entry per pair (l, l + 1)."""

    num_tokens: int
    """Tokens that were counted."""
    agreement: tuple[float, ...]
    """Share of tokens whose expert index is the same in both layers; meaningless between independent routers."""
    agreement_null: tuple[float, ...]
    """What independent choices with the same loads would give: sum over e of p_l(e) p_{l+1}(e)."""
    mean_agreement: float
    """Mean of `agreement` over pairs."""
    mean_agreement_null: float
    """Mean of `agreement_null` over pairs."""


@dataclass(frozen=True, kw_only=True)
class AdjacentAgreement(IndexAgreement):
    """The same with the mutual information of each pair of layers."""

    mutual_information_bits: tuple[float, ...]
    """Plug-in mutual information in bits, invariant under relabelling of experts; too high in small samples."""
    mutual_information_corrected_bits: tuple[float, ...]
    """The same with the Miller-Madow correction; near 0 (also below) for independent layers."""
    mean_mutual_information_bits: float
    """Mean of `mutual_information_bits` over pairs."""
    mean_mutual_information_corrected_bits: float
    """Mean of `mutual_information_corrected_bits` over pairs."""


def adjacent_agreement(
    path_ids_NL: NDArray[np.integer], token_mask_N: NDArray[np.bool_] | None = None
) -> AdjacentAgreement:
    """Agreement of consecutive layers' top-1 experts for the tokens in memory.

    PathMoE (arXiv 2603.18297) reports a consecutive-layer routing correlation without giving its formula: the share of
    equal indices is our choice, as are its null and its companion.

    Args:
        path_ids_NL: integers [tokens, layers], each token's top-1 expert in each layer, counted from 0.
        token_mask_N: bool [tokens], True for tokens that count (False: padding); None counts all.

    Raises:
        ValueError: wrong shape or dtype, an id out of range, fewer than two layers, or no token that counts.
    """
    path_ids_NL = select_paths(path_ids_NL, token_mask_N)
    counts = AdjacentCounts(num_layers=path_ids_NL.shape[1], num_experts=int(path_ids_NL.max(initial=0)) + 1)
    counts.update(path_ids_NL)
    return counts.result()


class AdjacentCounts:
    """Joint counts of adjacent layers' experts from batches of any size, in 8 * (num_layers - 1) * num_experts^2 bytes.

    The counts are integers, so the result does not depend on the order of the tokens or on batching and merging.
    """

    def __init__(self, *, num_layers: int, num_experts: int) -> None:
        """Count over `num_layers` layers whose expert ids lie in [0, num_experts)."""
        if num_layers < 2:
            raise ValueError(f"num_layers ({num_layers}) must be at least 2; adjacent layers need two MoE layers")
        if not 1 <= num_experts <= _MAX_EXPERTS:
            raise ValueError(
                f"num_experts ({num_experts}) must be between 1 and {_MAX_EXPERTS}; "
                "check that path_ids holds expert ids (joint counts take num_experts^2 cells per layer pair)"
            )
        self.num_layers = num_layers
        self.num_experts = num_experts
        self._joint_AEE = np.zeros((num_layers - 1, num_experts, num_experts), dtype=np.int64)

    def update(self, path_ids_NL: NDArray[np.integer], token_mask_N: NDArray[np.bool_] | None = None) -> None:
        """Add a batch (arguments and errors as in `adjacent_agreement`; a batch without tokens is fine)."""
        path_ids_NL = select_paths(path_ids_NL, token_mask_N)
        check_range(path_ids_NL, self.num_layers, self.num_experts)
        path_ids_LN = np.ascontiguousarray(path_ids_NL.T, dtype=np.int64)
        for pair, joint_EE in enumerate(self._joint_AEE):
            cell_N = path_ids_LN[pair] * self.num_experts + path_ids_LN[pair + 1]
            joint_EE += np.bincount(cell_N, minlength=joint_EE.size).reshape(joint_EE.shape)

    def merge(self, other: AdjacentCounts) -> None:
        """Add everything that `other`, of the same num_layers and num_experts, has counted; `other` keeps its counts.

        Raises:
            ValueError: the two have different shapes.
        """
        check_mergeable(self, other, "num_layers", "num_experts")
        self._joint_AEE += other._joint_AEE

    def result(self) -> AdjacentAgreement:
        """Agreement and mutual information over all tokens counted so far.

        Raises:
            ValueError: no token was counted.
        """
        check_some_tokens(int(self._joint_AEE[0].sum()))
        plug_in, corrected = zip(*(mutual_information_bits(joint_EE) for joint_EE in self._joint_AEE), strict=True)
        return AdjacentAgreement(
            **vars(index_agreement(self._joint_AEE)),
            mutual_information_bits=plug_in,
            mutual_information_corrected_bits=corrected,
            mean_mutual_information_bits=float(np.mean(plug_in)),
            mean_mutual_information_corrected_bits=float(np.mean(corrected)),
        )


def index_agreement(joint_AEE: NDArray[np.int64]) -> IndexAgreement:
    """Agreement of adjacent layers from the joint counts of their top-1 experts.

    Args:
        joint_AEE: int64 [pairs of adjacent layers, experts of the first, experts of the second], of at least one token.
    """
    num_tokens = int(joint_AEE[0].sum())
    agreement = [int(np.trace(joint_EE)) / num_tokens for joint_EE in joint_AEE]
    null = [_agreement_null(joint_EE) for joint_EE in joint_AEE]
    return IndexAgreement(
        num_tokens=num_tokens,
        agreement=tuple(agreement),
        agreement_null=tuple(null),
        mean_agreement=float(np.mean(agreement)),
        mean_agreement_null=float(np.mean(null)),
    )


def mutual_information_bits(joint_EE: NDArray[np.int64]) -> tuple[float, float]:
    """Mutual information of two variables in bits, plug-in and bias-corrected, from their joint counts.

    Plug-in: sum of p(a, b) log2(p(a, b) / (p(a) p(b))). Miller-Madow adds (K - 1) / (2 N ln 2) bits to each of the
    entropies in I = H(a) + H(b) - H(a, b) (Miller 1955; Roulston, Physica D 125, 1999, 285-294), hence

        I_corrected = I + (K_a + K_b - K_ab - 1) / (2 N ln 2),

    with N samples and K_a, K_b, K_ab the values and pairs that occur. It removes the bias of order 1/N only, so it
    needs N well above K_ab. It is not clipped at 0: clipped, independent layers would average above 0 again.

    Args:
        joint_EE: int64 [values of a, values of b], non-negative, not all 0.
    """
    num_samples = int(joint_EE.sum())
    counts_a_E, counts_b_E = joint_EE.sum(axis=1), joint_EE.sum(axis=0)
    a_K, b_K = np.nonzero(joint_EE)
    counts_K = joint_EE[a_K, b_K].astype(np.float64)
    ratio_K = counts_K * num_samples / (counts_a_E[a_K].astype(np.float64) * counts_b_E[b_K])
    plug_in = float(np.sum(counts_K * np.log2(ratio_K))) / num_samples
    num_excess = np.count_nonzero(counts_a_E) + np.count_nonzero(counts_b_E) - len(counts_K) - 1
    return plug_in, plug_in + int(num_excess) / (2 * num_samples * math.log(2))


def _agreement_null(joint_EE: NDArray[np.int64]) -> float:
    load_a_E, load_b_E = joint_EE.sum(axis=1) / joint_EE.sum(), joint_EE.sum(axis=0) / joint_EE.sum()
    return float(load_a_E @ load_b_E)
