"""The counts behind the figures that have an interval, of all tokens of a trace or of some of them."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts.

from __future__ import annotations

from dataclasses import dataclass

from pathmoe_eval.experts.load import LoadCounts
from pathmoe_eval.experts.router_scores import RouterScoreSums
from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.paths.paths import PathCounts
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace_header import TraceHeader


@dataclass(frozen=True, kw_only=True)
class RoutingCounts:
    """Four accumulators of the same tokens."""

    paths: PathCounts | None
    """None where paths are sketched."""
    consistency: ConsistencyCounts | None
    """None for a single layer."""
    load: LoadCounts
    scores: RouterScoreSums | None
    """None without logits."""

    def update(self, chunk: RoutingChunk, tokens: slice) -> None:
        """Add some tokens of a chunk."""
        expert_ids_NLK = chunk.expert_ids_NLK[tokens]
        if self.paths is not None:
            self.paths.update(expert_ids_NLK[..., 0])
        if self.consistency is not None:
            self.consistency.update(expert_ids_NLK)
        self.load.update(expert_ids_NLK)
        if self.scores is not None:
            assert chunk.logits_NLE is not None
            self.scores.update(chunk.logits_NLE[tokens], expert_ids_NLK)


def routing_counts(header: TraceHeader, *, has_paths: bool) -> RoutingCounts:
    """Counts of no token yet, for the traces of a header."""
    layers = {"num_layers": header.num_layers, "num_experts": header.num_experts}
    shape = layers | {"num_experts_per_tok": header.num_experts_per_tok}
    several = header.num_layers > 1
    return RoutingCounts(
        paths=PathCounts(**layers) if has_paths else None,
        consistency=ConsistencyCounts(**shape, router_of_layer=header.router_of_layer) if several else None,
        load=LoadCounts(**shape),
        scores=router_score_sums(header),
    )


def router_score_sums(header: TraceHeader) -> RouterScoreSums | None:
    """Sums of no token yet; None without logits."""
    if not header.has_logits:
        return None
    return RouterScoreSums(
        num_layers=header.num_layers,
        num_experts=header.num_experts,
        num_experts_per_tok=header.num_experts_per_tok,
        score_function=header.provenance.get("score_function", "softmax"),
    )
