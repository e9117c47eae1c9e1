"""How decided routers are: entropy and maximum of their scores, mass on the chosen experts, margin of the choice."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token, B bins, Q quantiles.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.mergeable import check_mergeable, difference
from pathmoe_eval.routing_shape import RoutingShape, check_some_tokens

ScoreFunction = Literal["softmax", "sigmoid"]

MARGIN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# A bin holds the float32 values that share the bits left of these: 2^-7 of relative width, all magnitudes.
_DROPPED_BITS = 16
_BINS = 1 << (31 - _DROPPED_BITS)
_TOKENS_AT_ONCE = 1 << 14


@dataclass(frozen=True, kw_only=True)
class RouterScores:
    """How decided routers are; tuples have one entry per layer.

    Scores here are normalised to sum to 1 over the experts: softmax(logits), or sigmoid(logits) over its sum (our
    choice: so the same ceilings hold for both). Biases that only steer the selection are not in them.
    """

    num_tokens: int
    """Tokens that were counted."""
    score_function: str
    """softmax or sigmoid, as the model has it."""
    entropy_bits: tuple[float, ...]
    """Mean over tokens of the entropy of the scores, in bits."""
    entropy_bits_null: float
    """log2(num_experts): equal scores, the highest entropy."""
    confidence: tuple[float, ...]
    """Mean over tokens of the highest score."""
    confidence_null: float
    """1 / num_experts: equal scores, the lowest confidence."""
    chosen_mass: tuple[float, ...]
    """Mean over tokens of the sum of the chosen experts' scores."""
    chosen_mass_null: float
    """num_experts_per_tok / num_experts: equal scores."""
    margin_logits: tuple[float, ...] | None
    """Mean over tokens of the k-th highest logit minus the next; None where every expert is chosen."""
    margin_logits_quantiles: tuple[tuple[float, ...], ...] | None
    """Quantiles of that difference at `MARGIN_QUANTILES`, each right to 0.4% of itself."""
    margin_scores: tuple[float, ...] | None
    """Mean over tokens of the k-th highest score minus the next; None where every expert is chosen."""
    mean_entropy_bits: float
    """Mean of `entropy_bits` over layers."""
    mean_confidence: float
    """Mean of `confidence` over layers."""
    mean_chosen_mass: float
    """Mean of `chosen_mass` over layers."""
    mean_margin_logits: float | None
    """Mean of `margin_logits` over layers."""
    mean_margin_scores: float | None
    """Mean of `margin_scores` over layers."""


class RouterScoreSums:
    """Sums in float64 over chunks of any size; batching and order move no more than the last digits."""

    def __init__(
        self, *, num_layers: int, num_experts: int, num_experts_per_tok: int, score_function: ScoreFunction
    ) -> None:
        """Sum for a model of this shape and score function.

        Raises:
            ValueError: as in `RoutingShape`, or an unknown score function.
        """
        if score_function not in ("softmax", "sigmoid"):
            raise ValueError(f"score_function ({score_function}) must be softmax or sigmoid; pass the model's own")
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        self.score_function: ScoreFunction = score_function
        self.num_tokens = 0
        # entropy, confidence, chosen mass, margin in logits, margin in scores
        self._sums_5L = np.zeros((5, num_layers))
        self._margins_LB = np.zeros((num_layers, _BINS), dtype=np.int64)

    def update(self, logits_NLE: NDArray[np.floating], expert_ids_NLK: NDArray[np.integer]) -> None:
        """Add a chunk.

        Args:
            logits_NLE: float [tokens, layers, experts], the routers' logits, before scores and before any bias.
            expert_ids_NLK: integers [tokens, layers, experts per token], the experts that were chosen.

        Raises:
            ValueError: as in `RoutingShape.check`, or logits of another shape or not finite.
        """
        expert_ids_NLK = self.shape.check(expert_ids_NLK)
        logits_NLE = np.asarray(logits_NLE)
        _check_logits(logits_NLE, (len(expert_ids_NLK), self.shape.num_layers, self.shape.num_experts))
        for start in range(0, len(logits_NLE), _TOKENS_AT_ONCE):
            block = slice(start, start + _TOKENS_AT_ONCE)
            for layer in range(self.shape.num_layers):
                self._add(layer, logits_NLE[block, layer], expert_ids_NLK[block, layer])
        self.num_tokens += len(logits_NLE)

    def merge(self, other: RouterScoreSums) -> None:
        """Add everything that `other` has counted; `other` keeps its sums.

        Raises:
            ValueError: the two are of different shapes or score functions.
        """
        self.shape.check_mergeable(other.shape)
        check_mergeable(self, other, "score_function")
        self._sums_5L += other._sums_5L
        self._margins_LB += other._margins_LB
        self.num_tokens += other.num_tokens

    def without(self, part: RouterScoreSums) -> RouterScoreSums:
        """Counts of the tokens that are not in `part`, some of those that were counted here."""
        return difference(self, part, "num_tokens", "_sums_5L", "_margins_LB")

    def result(self) -> RouterScores:
        """Router scores over all tokens counted so far.

        Raises:
            ValueError: no token was counted.
        """
        check_some_tokens(self.num_tokens)
        means_5L = self._sums_5L / self.num_tokens
        entropy, confidence, mass, margin_logits, margin_scores = (tuple(row) for row in means_5L.tolist())
        num_experts, per_token = self.shape.num_experts, self.shape.num_experts_per_tok
        has_margin = per_token < num_experts
        overall = means_5L.mean(axis=1).tolist()
        quantiles = tuple(_quantiles(margins_B, MARGIN_QUANTILES) for margins_B in self._margins_LB)
        return RouterScores(
            num_tokens=self.num_tokens,
            score_function=self.score_function,
            entropy_bits=entropy,
            entropy_bits_null=math.log2(num_experts),
            confidence=confidence,
            confidence_null=1 / num_experts,
            chosen_mass=mass,
            chosen_mass_null=per_token / num_experts,
            margin_logits=margin_logits if has_margin else None,
            margin_logits_quantiles=quantiles if has_margin else None,
            margin_scores=margin_scores if has_margin else None,
            mean_entropy_bits=overall[0],
            mean_confidence=overall[1],
            mean_chosen_mass=overall[2],
            mean_margin_logits=overall[3] if has_margin else None,
            mean_margin_scores=overall[4] if has_margin else None,
        )

    def _add(self, layer: int, logits_NE: NDArray[np.floating], expert_ids_NK: NDArray[np.integer]) -> None:
        # experts first: sums over them then run along memory, several times as fast
        log_EN = unnormalised_log_scores(np.ascontiguousarray(logits_NE.T, dtype=np.float64), self.score_function)
        highest_N = log_EN.max(axis=0)
        log_EN = log_EN - highest_N  # not in place: it may be the caller's array
        scores_EN = np.exp(log_EN)
        total_N = scores_EN.sum(axis=0)
        scores_EN /= total_N
        self._sums_5L[0, layer] += np.sum(np.log(total_N) - np.sum(scores_EN * log_EN, axis=0)) / math.log(2)
        self._sums_5L[1, layer] += np.sum(scores_EN.max(axis=0))
        self._sums_5L[2, layer] += np.sum(np.take_along_axis(scores_EN, expert_ids_NK.T.astype(np.int64), axis=0))
        if (last_in := self.shape.num_experts - self.shape.num_experts_per_tok) > 0:
            edge_2N = np.sort(logits_NE, axis=1)[:, [last_in, last_in - 1]].T.astype(np.float64)
            edge_scores_2N = np.exp(unnormalised_log_scores(edge_2N, self.score_function) - highest_N) / total_N
            margin_N = np.abs(edge_2N[0] - edge_2N[1])  # a logit of -0 would leave a negative zero
            self._sums_5L[3, layer] += np.sum(margin_N)
            self._sums_5L[4, layer] += np.sum(edge_scores_2N[0] - edge_scores_2N[1])
            self._margins_LB[layer] += np.bincount(_bins(margin_N), minlength=_BINS)


def unnormalised_log_scores(logits: NDArray[np.float64], score_function: ScoreFunction) -> NDArray[np.float64]:
    """Natural logarithm of the scores up to what makes them sum to 1: the logits, or log sigmoid of them."""
    return -np.logaddexp(0, -logits) if score_function == "sigmoid" else logits


def _bins(margin_N: NDArray[np.float64]) -> NDArray[np.uint32]:
    # the bits of a positive float32 are ordered as its values are
    as_float32_N = np.minimum(margin_N, np.finfo(np.float32).max).astype(np.float32)
    return as_float32_N.view(np.uint32) >> np.uint32(_DROPPED_BITS)


def _quantiles(margins_B: NDArray[np.int64], quantiles_Q: tuple[float, ...]) -> tuple[float, ...]:
    """Middle of the bin in which the smallest value lies that at least the given share of tokens do not exceed."""
    cumulative_B = np.cumsum(margins_B)
    bins_Q = np.searchsorted(cumulative_B, np.asarray(quantiles_Q) * cumulative_B[-1]).astype(np.uint32)
    middle = np.uint32(1 << (_DROPPED_BITS - 1))
    values_Q = (bins_Q << np.uint32(_DROPPED_BITS) | middle).view(np.float32).astype(np.float64)
    return tuple(np.where(bins_Q == 0, 0.0, values_Q).tolist())


def _check_logits(logits_NLE: NDArray[np.floating], shape: tuple[int, int, int]) -> None:
    if logits_NLE.dtype.kind != "f" or logits_NLE.shape != shape:
        raise ValueError(
            f"logits ({logits_NLE.dtype} {list(logits_NLE.shape)}) must be float {list(shape)}, "
            "tokens, layers, experts; pass every router's logits of each token of expert_ids"
        )
    is_bad_NL = ~np.isfinite(logits_NLE).all(axis=2)
    if is_bad_NL.any():
        token, layer = (int(index) for index in np.argwhere(is_bad_NL)[0])
        raise ValueError(
            f"logits (not finite at token {token}, layer {layer}) must be finite; "
            "pass logits before any mask and check the model's weights"
        )
