"""How `route` chooses and weighs, and what it returns."""

# Shapes: T tokens, E experts, K experts per token, N = T*K routed rows.

from typing import NamedTuple

from torch import Tensor

MAX_ROWS = 2**26
"""Routed rows of one call: the kernels' 32-bit offsets then reach each expert's count of each chunk of 16 tokens."""


class RouteRule(NamedTuple):
    """The choices that a router's formula leaves open."""

    num_experts_per_tok: int
    """K."""
    sigmoid: bool = False
    """Scores are sigmoids of the logits rather than their softmax."""
    norm_topk_prob: bool = False
    """The K weights of a token are scaled to sum to one."""
    routed_scaling_factor: float = 1.0
    """Factor of every weight."""
    probability_sum: bool = False
    """Also sum each expert's probability over tokens, for a balance loss."""
    uniform: bool = False
    """Token t goes to experts t K, t K + 1, ... modulo E, whatever its logits: perfectly balanced, for benchmarks."""

    @property
    def inverse_scaling(self) -> float:
        """Of the factor of every weight; zero for zero, where all weights are."""
        return 1 / self.routed_scaling_factor if self.routed_scaling_factor else 0.0


class Dispatch(NamedTuple):
    """Routed rows in the order of their experts."""

    order_N: Tensor
    """[N] int32: sorted position j holds row `order_N[j]` of the flattened [T, K]."""
    position_N: Tensor
    """[N] int32, the inverse: row n lies at sorted position `position_N[n]`."""
    ends_E: Tensor
    """[E] int32: expert e has sorted positions `ends_E[e - 1]` (0 for the first) up to `ends_E[e]`."""


class Routed(NamedTuple):
    """What `route` returns."""

    weights_TK: Tensor
    """[T, K] fp32 weights of the chosen experts."""
    expert_ids_TK: Tensor
    """[T, K] int32, highest ranked first."""
    logsumexp_T: Tensor
    """[T] fp32 log-sum-exp of the router logits."""
    load_E: Tensor
    """[E] int32 tokens per expert, masked tokens not counted."""
    probability_sum_E: Tensor
    """[E] fp32 sum over unmasked tokens of each expert's probability; empty unless asked for."""
    dispatch: Dispatch
    """The rows sorted by expert, those of masked tokens too."""
