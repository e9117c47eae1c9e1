"""How evenly a layer's experts are used: load entropy, busiest expert, dead experts, and what chance would give."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token, R simulated samples, J picks that a token has left.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy

from pathmoe_eval.mergeable import difference
from pathmoe_eval.routing_shape import RoutingShape, by_layer, check_some_tokens

_STARVED_SHARE = 0.01
_NULL_SAMPLES = 500
_NULL_SEED = 0


@dataclass(frozen=True, kw_only=True)
class LoadBalance:
    """Balance of one kind of pick; tuples have one entry per layer, `counts` a further one per expert.

    The nulls are means over seeded samples of as many tokens whose experts are drawn uniformly: see `uniform_counts`.
    """

    counts: tuple[tuple[int, ...], ...]
    """Tokens that picked each expert."""
    entropy_bits: tuple[float, ...]
    """Shannon entropy, in bits, of the distribution of picks over experts; log2(num_experts) when all are equal."""
    entropy_bits_null: float
    """The same by chance."""
    entropy_share: tuple[float, ...] | None
    """`entropy_bits` / log2(num_experts), between 0 and 1; None for a single expert."""
    max_over_mean: tuple[float, ...]
    """Picks of the busiest expert over the mean; 1 when balanced, num_experts when one expert gets all."""
    max_over_mean_null: float
    """The same by chance: above 1, since the busiest of several equal experts is ahead by luck."""
    coefficient_of_variation: tuple[float, ...]
    """Standard deviation (over all experts, not a sample of them) of the picks over their mean."""
    coefficient_of_variation_null: float
    """The same by chance."""
    dead_experts: tuple[int, ...]
    """Experts that no token picked."""
    dead_experts_null: float
    """The same by chance; above 0 means that the sample is too small to call an expert dead."""
    starved_experts: tuple[int, ...]
    """Experts with less than 1% of an equal share of the picks, dead ones included."""
    mean_entropy_bits: float
    """Mean of `entropy_bits` over layers."""
    mean_entropy_share: float | None
    """Mean of `entropy_share` over layers; None for a single expert."""
    mean_max_over_mean: float
    """Mean of `max_over_mean` over layers."""
    mean_coefficient_of_variation: float
    """Mean of `coefficient_of_variation` over layers."""
    mean_dead_experts: float
    """Mean of `dead_experts` over layers."""
    mean_starved_experts: float
    """Mean of `starved_experts` over layers."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load of the experts by every pick of a token, and by its first alone."""

    num_tokens: int
    """Tokens that were counted."""
    num_experts: int
    """Experts of each layer."""
    num_experts_per_tok: int
    """Picks of each token in each layer."""
    all_picks: LoadBalance
    """All picks of a token."""
    first_picks: LoadBalance
    """A token's pick of the highest weight."""


class LoadCounts:
    """Picks of every expert from chunks of any size; integers, so order, batching and merging do not matter."""

    def __init__(self, *, num_layers: int, num_experts: int, num_experts_per_tok: int) -> None:
        """Count for a model of this shape (errors as in `RoutingShape`)."""
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        self.num_tokens = 0
        self._picks_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
        self._first_picks_LE = np.zeros_like(self._picks_LE)

    def update(self, expert_ids_NLK: NDArray[np.integer]) -> None:
        """Add a chunk (arguments and errors as in `RoutingShape.check`)."""
        expert_ids_LKN = by_layer(self.shape.check(expert_ids_NLK))
        self._picks_LE += count_picks(expert_ids_LKN, self.shape.num_experts)
        self._first_picks_LE += count_picks(expert_ids_LKN[:, :1], self.shape.num_experts)
        self.num_tokens += expert_ids_LKN.shape[-1]

    def merge(self, other: LoadCounts) -> None:
        """Add everything that `other` has counted; `other` keeps its counts.

        Raises:
            ValueError: the two are of different shapes.
        """
        self.shape.check_mergeable(other.shape)
        self._picks_LE += other._picks_LE
        self._first_picks_LE += other._first_picks_LE
        self.num_tokens += other.num_tokens

    def picks(self) -> NDArray[np.int64]:
        """Tokens that picked each expert, int64 [layers, experts]."""
        return self._picks_LE.copy()

    def without(self, part: LoadCounts) -> LoadCounts:
        """Counts of the tokens that are not in `part`, some of those that were counted here."""
        return difference(self, part, "num_tokens", "_picks_LE", "_first_picks_LE")

    def result(self) -> Load:
        """Load of all tokens counted so far.

        Raises:
            ValueError: no token was counted.
        """
        check_some_tokens(self.num_tokens)
        return Load(
            num_tokens=self.num_tokens,
            num_experts=self.shape.num_experts,
            num_experts_per_tok=self.shape.num_experts_per_tok,
            all_picks=load_balance(self._picks_LE, self.num_tokens),
            first_picks=load_balance(self._first_picks_LE, self.num_tokens),
        )


def count_picks(expert_ids_LKN: NDArray[np.integer], num_experts: int) -> NDArray[np.int64]:
    """Tokens that picked each expert, int64 [layers, experts], from ids [layers, experts per token, tokens]."""
    return np.stack([np.bincount(ids_KN.ravel(), minlength=num_experts) for ids_KN in expert_ids_LKN])


def load_balance(counts_LE: NDArray[np.int64], num_tokens: int) -> LoadBalance:
    """Figures of balance of each layer, with their nulls.

    Args:
        counts_LE: int64 [layers, experts], tokens that picked each expert; the same sum, not 0, in every layer.
        num_tokens: tokens that made these picks, each equally many and of different experts.
    """
    num_experts = counts_LE.shape[1]
    picks_per_token = int(counts_LE[0].sum()) // num_tokens
    null = balance_figures(uniform_counts(num_tokens, num_experts, picks_per_token, _NULL_SAMPLES, _NULL_SEED))
    figures = balance_figures(counts_LE)
    means = {name: float(np.mean(values_L)) for name, values_L in figures.items()}
    entropy_share_L = figures["entropy_bits"] / math.log2(num_experts) if num_experts > 1 else None
    return LoadBalance(
        counts=tuple(tuple(row) for row in counts_LE.tolist()),
        entropy_bits=tuple(figures["entropy_bits"].tolist()),
        entropy_bits_null=float(np.mean(null["entropy_bits"])),
        entropy_share=None if entropy_share_L is None else tuple(entropy_share_L.tolist()),
        max_over_mean=tuple(figures["max_over_mean"].tolist()),
        max_over_mean_null=float(np.mean(null["max_over_mean"])),
        coefficient_of_variation=tuple(figures["coefficient_of_variation"].tolist()),
        coefficient_of_variation_null=float(np.mean(null["coefficient_of_variation"])),
        dead_experts=tuple(figures["dead_experts"].tolist()),
        dead_experts_null=float(np.mean(null["dead_experts"])),
        starved_experts=tuple(figures["starved_experts"].tolist()),
        mean_entropy_bits=means["entropy_bits"],
        mean_entropy_share=None if entropy_share_L is None else float(np.mean(entropy_share_L)),
        mean_max_over_mean=means["max_over_mean"],
        mean_coefficient_of_variation=means["coefficient_of_variation"],
        mean_dead_experts=means["dead_experts"],
        mean_starved_experts=means["starved_experts"],
    )


def balance_figures(counts_LE: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The figures that `LoadBalance` describes, each [layers], for counts with a pick in every layer."""
    counts_LE = np.sort(counts_LE, axis=1)  # so that the names of the experts do not change the last bit of a sum
    mean_L = counts_LE.mean(axis=1)
    return {
        "entropy_bits": np.asarray(entropy(counts_LE, base=2, axis=1)),
        "max_over_mean": counts_LE[:, -1] / mean_L,
        "coefficient_of_variation": counts_LE.std(axis=1) / mean_L,
        "dead_experts": np.count_nonzero(counts_LE == 0, axis=1),
        "starved_experts": np.count_nonzero(counts_LE < _STARVED_SHARE * mean_L[:, None], axis=1),
    }


def uniform_counts(
    num_tokens: int, num_experts: int, picks_per_token: int, num_samples: int, seed: int
) -> NDArray[np.int64]:
    """Samples of how many tokens pick each expert when each draws `picks_per_token` different ones uniformly.

    Exact for any number of tokens, at a cost that does not depend on it: going through the experts one by one, a token
    with j picks left among m experts left takes the next with probability j / m, so the tokens with j left that take it
    are binomial.

    Returns:
        int64 [num_samples, num_experts].
    """
    rng = np.random.default_rng(seed)
    counts_RE = np.empty((num_samples, num_experts), dtype=np.int64)
    tokens_RJ = np.zeros((num_samples, picks_per_token + 1), dtype=np.int64)
    tokens_RJ[:, -1] = num_tokens
    for expert in range(num_experts):
        # tokens with more picks left than experts are left do not exist, but their probability must still be one
        take_J = np.minimum(np.arange(picks_per_token + 1) / (num_experts - expert), 1.0)
        taken_RJ = rng.binomial(tokens_RJ, take_J)
        counts_RE[:, expert] = taken_RJ.sum(axis=1)
        tokens_RJ -= taken_RJ
        tokens_RJ[:, :-1] += taken_RJ[:, 1:]
    return counts_RE
