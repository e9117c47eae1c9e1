"""Counts of slices of chunks, against the accumulators handed all tokens."""

# Shapes: N tokens, L MoE layers, K experts per token, E experts, S sequences.

import dataclasses
from pathlib import Path

import numpy as np

from pathmoe_eval.experts.load import LoadCounts
from pathmoe_eval.experts.router_scores import RouterScoreSums
from pathmoe_eval.intervals.routing_counts import routing_counts
from pathmoe_eval.layers.consistency import ConsistencyCounts
from pathmoe_eval.paths.paths import path_entropy
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace_header import TraceHeader

SHAPE = {"num_layers": 3, "num_experts": 5, "num_experts_per_tok": 2}
HEADER = TraceHeader(
    **SHAPE, layer_names=("a", "b", "c"), router_of_layer=(0, 0, 1), model="m", tokenizer="", data="d", vocab_size=9,
    has_weights=False, has_logits=True, has_predicted_ids=False, provenance={"score_function": "sigmoid"},
)  # fmt: skip


def test_slices_add_up_to_all_tokens() -> None:
    logits_NLE = np.random.default_rng(0).normal(size=(40, 3, 5))
    ids_NLK = np.argsort(-logits_NLE, axis=-1)[..., :2]
    chunk = RoutingChunk(
        expert_ids_NLK=ids_NLK, token_ids_N=np.zeros(40, dtype=int), starts_S1=np.array([0, 40]), logits_NLE=logits_NLE
    )
    counts = routing_counts(HEADER, has_paths=True)
    for tokens in (slice(0, 7), slice(7, 33), slice(33, 40)):
        counts.update(chunk, tokens)
    load = LoadCounts(**SHAPE)
    load.update(ids_NLK)
    consistency = ConsistencyCounts(**SHAPE, router_of_layer=(0, 0, 1))
    consistency.update(ids_NLK)
    scores = RouterScoreSums(**SHAPE, score_function="sigmoid")
    scores.update(logits_NLE, ids_NLK)
    assert counts.paths is not None and counts.paths.result() == path_entropy(ids_NLK[..., 0])
    assert counts.load.result() == load.result()
    assert counts.consistency is not None and counts.consistency.result() == consistency.result()
    assert counts.scores is not None
    np.testing.assert_allclose(counts.scores.result().entropy_bits, scores.result().entropy_bits, rtol=1e-12)


def test_what_a_trace_cannot_tell_is_not_counted(tmp_path: Path) -> None:
    single = dataclasses.replace(
        HEADER, num_layers=1, layer_names=("a",), router_of_layer=(0,), has_logits=False, provenance={}
    )
    counts = routing_counts(single, has_paths=False)
    assert counts.consistency is None and counts.scores is None and counts.paths is None
