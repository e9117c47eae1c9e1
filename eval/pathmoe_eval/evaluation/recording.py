"""A model run over documents: the score of each token, and its routing on disk."""

# Shapes: N tokens that a forward counts, L MoE layers, E experts, K experts per token.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from pathmoe_eval.evaluation.evaluated_data import EvaluatedDocument
from pathmoe_eval.evaluation.evaluated_model import EvaluatedModel
from pathmoe_eval.evaluation.scoring import ScoredBatch, TokenScores, join_scores, scored_batches
from pathmoe_eval.evaluation.windows import score_windows
from pathmoe_eval.experts.router_scores import ScoreFunction
from pathmoe_eval.traces.recorded_routing import RecordedRouting
from pathmoe_eval.traces.recorder import RoutingRecorder
from pathmoe_eval.traces.routing_chunk import RoutingChunk
from pathmoe_eval.traces.trace_header import TraceHeader
from pathmoe_eval.traces.trace_writer import TraceWriter

# Ours and DeepSeek's; Cohere's.
_NAMES_OF_FUNCTION = ("scoring_func", "expert_selection_fn")


def record(
    model: EvaluatedModel,
    documents: Sequence[EvaluatedDocument],
    folder: str | Path,
    *,
    max_length: int,
    stride: int,
    data: str,
    logits: bool = False,
    provenance: dict[str, Any] | None = None,
) -> TokenScores:
    """Score documents, and write the routing of each of their tokens as a trace.

    Each token is scored once and recorded once, in the window where `score_windows` counts it, as the trace's sequences
    are the documents. The trace appears when all of it is written.

    Args:
        model: to run.
        documents: with at least one token each, in the order that the trace will have.
        folder: of the trace; a new or an empty one.
        max_length: inputs of a forward at most.
        stride: inputs between the beginnings of two windows of a document.
        data: what the documents are, for the trace's header.
        logits: also record router logits, 4 bytes a token, layer and expert.
        provenance: for the trace's header.

    Raises:
        ValueError: a model without routers, a folder that is not free, or settings that `score_windows` refuses.
    """
    recorder = RoutingRecorder(model.model, weights=logits, logits=logits)
    batches = scored_batches(model.model, score_windows(documents, max_length, stride), predict=True)
    with recorder:
        first = next(batches)
        routing = recorder.take()
        header = TraceHeader(
            num_layers=len(recorder.layers),
            num_experts=recorder.num_experts,
            num_experts_per_tok=routing.expert_ids_NLK.shape[2],
            layer_names=tuple(layer.name for layer in recorder.layers),
            router_of_layer=recorder.router_of_layer,
            model=model.name,
            tokenizer=model.tokenizer_place,
            data=data,
            vocab_size=model.vocab_size,
            has_weights=False,
            has_logits=logits,
            has_predicted_ids=True,
            provenance=(provenance or {}) | (score_function(model.model.config, routing) if logits else {}),
        )
        with TraceWriter(folder, header) as writer:
            return join_scores(_append_all(writer, recorder, documents, first, routing, batches))


def score_function(config: PreTrainedConfig, routing: RecordedRouting) -> dict[str, str]:
    """Which function of its logits a router scores by, and how it is known: `config`, `weights`, or `assumed`.

    The configuration says it under one of a few names. Where it does not, the weights do, if a token has two. With one
    expert a token nothing tells, nor is there a second choice where the function is neither softmax nor sigmoid (the
    sqrtsoftplus of DeepSeek-V4): softmax is assumed (our choice).

    Args:
        config: the model's.
        routing: recorded with weights and logits.

    Returns:
        `score_function` and `score_function_from`, for a trace's provenance.
    """
    text_config = config.get_text_config()
    said = next((getattr(text_config, name) for name in _NAMES_OF_FUNCTION if hasattr(text_config, name)), None)
    if said in ("softmax", "sigmoid"):
        return {"score_function": said, "score_function_from": "config"}
    if said is None and routing.expert_ids_NLK.shape[2] > 1:
        return {"score_function": _function_of_weights(routing), "score_function_from": "weights"}
    return {"score_function": "softmax", "score_function_from": "assumed"}


def _function_of_weights(routing: RecordedRouting) -> ScoreFunction:
    """By the ratios of the first two weights, which no renormalisation, scaling or softmax over the chosen changes."""
    assert routing.weights_NLK is not None and routing.logits_NLE is not None
    first_two = routing.expert_ids_NLK[..., :2].astype(np.int64)
    logits_NL2 = np.take_along_axis(routing.logits_NLE, first_two, axis=-1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio_NL = np.diff(np.log(routing.weights_NLK[..., :2].astype(np.float64)), axis=-1)
        errors = {
            "softmax": np.abs(log_ratio_NL - np.diff(logits_NL2, axis=-1)),
            "sigmoid": np.abs(log_ratio_NL - np.diff(-np.logaddexp(0.0, -logits_NL2), axis=-1)),
        }
    return "sigmoid" if np.nanmedian(errors["sigmoid"]) < np.nanmedian(errors["softmax"]) else "softmax"


def _append_all(
    writer: TraceWriter,
    recorder: RoutingRecorder,
    documents: Sequence[EvaluatedDocument],
    first: ScoredBatch,
    routing: RecordedRouting,
    rest: Iterable[ScoredBatch],
) -> Iterator[ScoredBatch]:
    _append(writer, documents, first, routing)
    yield first
    for batch in rest:
        _append(writer, documents, batch, recorder.take())
        yield batch


def _append(
    writer: TraceWriter, documents: Sequence[EvaluatedDocument], batch: ScoredBatch, routing: RecordedRouting
) -> None:
    """Write what one window counts."""
    counted_N = np.flatnonzero(batch.is_counted_BS)
    assert batch.predicted_ids_BS is not None
    position = int(batch.position_BS.flat[counted_N[0]])
    document = documents[int(batch.document_BS.flat[counted_N[0]])]
    begins = [document] if position == 0 else []
    writer.append(
        RoutingChunk(
            expert_ids_NLK=routing.expert_ids_NLK[counted_N],
            token_ids_N=batch.input_ids_BS.flat[counted_N],
            starts_S1=np.array([0, len(counted_N)]),
            logits_NLE=None if routing.logits_NLE is None else routing.logits_NLE[counted_N],
            predicted_ids_N=batch.predicted_ids_BS.flat[counted_N],
            first_position=position,
        ),
        names=[document.name for document in begins],
        domains=[document.domain for document in begins],
    )
