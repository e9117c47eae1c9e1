"""How far the routing of an earlier checkpoint is that of a later one (OLMoE, arXiv 2409.02060, Eq. 5)."""

# Shapes: N tokens, L MoE layers, E experts, K experts per token.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathmoe_eval.experts.load import count_picks
from pathmoe_eval.routing_shape import RoutingShape, by_layer, check_some_tokens
from pathmoe_eval.traces.trace import RoutingTrace


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """Router saturation; tuples have one entry per layer.

    It compares expert indices of a layer with those of the same layer, which mean the same in two checkpoints of one
    run and nothing in two runs.
    """

    num_tokens: int
    """Tokens that were counted."""
    all_picks: tuple[float, ...]
    """Mean over tokens of the share of the k experts of the later checkpoint that the earlier one picks too."""
    all_picks_null_uniform: float
    """k / num_experts: two independent choices of equally loaded experts."""
    all_picks_null_loads: tuple[float, ...]
    """Independent choices with each checkpoint's own loads: sum over experts of p(e) q(e) / k, p and q the shares of
    tokens that pick e. Above it, checkpoints agree about tokens and not only about which experts are busy."""
    first_picks: tuple[float, ...]
    """Share of tokens whose expert of the highest weight is the same."""
    first_picks_null_uniform: float
    """1 / num_experts."""
    first_picks_null_loads: tuple[float, ...]
    """As `all_picks_null_loads`, for the experts of the highest weight."""
    mean_all_picks: float
    """Mean of `all_picks` over layers."""
    mean_first_picks: float
    """Mean of `first_picks` over layers."""


class SaturationCounts:
    """Shared picks of two checkpoints from pairs of chunks of any size; integers, so order and batching are free."""

    def __init__(self, *, num_layers: int, num_experts: int, num_experts_per_tok: int) -> None:
        """Count for two checkpoints of this shape (errors as in `RoutingShape`)."""
        self.shape = RoutingShape(
            num_layers=num_layers, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok
        )
        self.num_tokens = 0
        self._shared_L = np.zeros(num_layers, dtype=np.int64)
        self._same_first_L = np.zeros(num_layers, dtype=np.int64)
        # earlier and later checkpoint; all picks and first picks
        self._picks_22LE = np.zeros((2, 2, num_layers, num_experts), dtype=np.int64)

    def update(
        self,
        earlier_ids_NLK: NDArray[np.integer],
        later_ids_NLK: NDArray[np.integer],
        earlier_token_ids_N: NDArray[np.integer],
        later_token_ids_N: NDArray[np.integer],
    ) -> None:
        """Add a chunk of both traces.

        Args:
            earlier_ids_NLK: integers [tokens, layers, experts per token] of the earlier checkpoint, highest weight
                first, a token's experts different.
            later_ids_NLK: the same of the later checkpoint, for the same tokens.
            earlier_token_ids_N: integers [tokens], the input tokens of the earlier trace.
            later_token_ids_N: those of the later trace, which must be the same.

        Raises:
            ValueError: as in `RoutingShape.check`, or the two are not of the same tokens.
        """
        earlier_ids_NLK, later_ids_NLK = self.shape.check(earlier_ids_NLK), self.shape.check(later_ids_NLK)
        _check_same_tokens(earlier_ids_NLK, later_ids_NLK, np.asarray(earlier_token_ids_N), later_token_ids_N)
        both = by_layer(earlier_ids_NLK), by_layer(later_ids_NLK)
        for picks_2LE, ids_LKN in zip(self._picks_22LE, both, strict=True):
            picks_2LE[0] += count_picks(ids_LKN, self.shape.num_experts)
            picks_2LE[1] += count_picks(ids_LKN[:, :1], self.shape.num_experts)
        for layer, (earlier_KN, later_KN) in enumerate(zip(*both, strict=True)):
            self._shared_L[layer] += sum(np.count_nonzero(earlier_KN == later_N) for later_N in later_KN)
            self._same_first_L[layer] += np.count_nonzero(earlier_KN[0] == later_KN[0])
        self.num_tokens += len(earlier_ids_NLK)

    def merge(self, other: SaturationCounts) -> None:
        """Add everything that `other` has counted; `other` keeps its counts.

        Raises:
            ValueError: the two are of different shapes.
        """
        self.shape.check_mergeable(other.shape)
        self._shared_L += other._shared_L
        self._same_first_L += other._same_first_L
        self._picks_22LE += other._picks_22LE
        self.num_tokens += other.num_tokens

    def result(self) -> Saturation:
        """Saturation over all tokens counted so far.

        Raises:
            ValueError: no token was counted.
        """
        check_some_tokens(self.num_tokens)
        per_token, num_experts = self.shape.num_experts_per_tok, self.shape.num_experts
        all_picks_L = self._shared_L / (self.num_tokens * per_token)
        first_picks_L = self._same_first_L / self.num_tokens
        earlier_2LE, later_2LE = self._picks_22LE / self.num_tokens
        expected_shared_2L = (earlier_2LE * later_2LE).sum(axis=2)
        return Saturation(
            num_tokens=self.num_tokens,
            all_picks=tuple(all_picks_L.tolist()),
            all_picks_null_uniform=per_token / num_experts,
            all_picks_null_loads=tuple((expected_shared_2L[0] / per_token).tolist()),
            first_picks=tuple(first_picks_L.tolist()),
            first_picks_null_uniform=1 / num_experts,
            first_picks_null_loads=tuple(expected_shared_2L[1].tolist()),
            mean_all_picks=float(np.mean(all_picks_L)),
            mean_first_picks=float(np.mean(first_picks_L)),
        )


def trace_saturation(earlier: RoutingTrace, later: RoutingTrace) -> Saturation:
    """Picks that an earlier checkpoint shares with a later one, on the same tokens.

    Raises:
        ValueError: traces of other tokens, or of models of another shape.
    """
    header = earlier.header
    shape = {name: getattr(header, name) for name in ("num_layers", "num_experts", "num_experts_per_tok")}
    check_later(later, num_tokens=earlier.num_tokens, **shape)
    counts = SaturationCounts(**shape)
    for (earlier_NLK, earlier_ids_N), (later_NLK, later_ids_N) in _side_by_side(earlier, later):
        counts.update(earlier_NLK, later_NLK, earlier_ids_N, later_ids_N)
    return counts.result()


def check_later(later: RoutingTrace, *, num_tokens: int, **shape: int) -> None:
    """Refuse a later checkpoint's trace that can't be of the same tokens, or of another shape of model.

    Args:
        later: the trace.
        num_tokens: of the earlier checkpoint's.
        shape: what is known of the earlier one: num_layers, num_experts, num_experts_per_tok.

    Raises:
        ValueError: it is another number than that of the later one.
    """
    if num_tokens != later.num_tokens:
        raise ValueError(
            f"--later ({later.num_tokens} tokens) must be a trace of the same {num_tokens} tokens; record both "
            "with the same --data, --max_tokens and windows"
        )
    for name, number in shape.items():
        if number != (found := getattr(later.header, name)):
            raise ValueError(
                f"--later ({name} {found}) must be a trace of a checkpoint of the same run, with {name} {number}; "
                "give another"
            )


def _side_by_side(*traces: RoutingTrace) -> Iterator[tuple[tuple[NDArray[np.integer], NDArray[np.integer]], ...]]:
    """Expert and token ids of the same tokens in each trace; chunks end where record batches do, in each elsewhere."""
    streams = [((chunk.expert_ids_NLK, chunk.token_ids_N) for chunk in trace.chunks()) for trace in traces]
    waiting = [next(stream) for stream in streams]
    while True:
        length = min(len(ids_N) for _, ids_N in waiting)
        yield tuple((ids_NLK[:length], ids_N[:length]) for ids_NLK, ids_N in waiting)
        rest = [(ids_NLK[length:], ids_N[length:]) for ids_NLK, ids_N in waiting]
        waiting = [part if len(part[1]) else next(stream, part) for part, stream in zip(rest, streams, strict=True)]
        if not all(len(ids_N) for _, ids_N in waiting):
            return


def _check_same_tokens(
    earlier_ids_NLK: NDArray[np.integer],
    later_ids_NLK: NDArray[np.integer],
    earlier_token_ids_N: NDArray[np.integer],
    later_token_ids_N: NDArray[np.integer],
) -> None:
    if len(earlier_ids_NLK) != len(later_ids_NLK):
        raise ValueError(
            f"later expert_ids ({len(later_ids_NLK)} tokens) must be as many as the earlier ({len(earlier_ids_NLK)}); "
            "record both checkpoints on the same data"
        )
    for name, token_ids_N in (("earlier", earlier_token_ids_N), ("later", later_token_ids_N)):
        if np.shape(token_ids_N) != (len(earlier_ids_NLK),):
            raise ValueError(
                f"{name} token_ids ({list(np.shape(token_ids_N))}) must be [{len(earlier_ids_NLK)}]; "
                "pass one input token per row of expert_ids"
            )
    differs_N = earlier_token_ids_N != later_token_ids_N
    if differs_N.any():
        token = int(np.argmax(differs_N))
        raise ValueError(
            f"later token_ids ({later_token_ids_N[token]} at {token}) must equal the earlier "
            f"({earlier_token_ids_N[token]}); record both checkpoints on the same data"
        )
